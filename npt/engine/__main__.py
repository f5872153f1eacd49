"""`python -m npt.engine`, also `npt doctor`: what is installed, and whether it works.

Prints one line for the engine and for each package and device that npt needs. Exit code 1 if one
of them does not work.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from npt import engine
from npt.errors import EXIT_BAD_INPUT


class Fault(Exception):
    """One sentence: what is wrong with a part, and how to repair it."""


class Parser(argparse.ArgumentParser):
    """Reports an error as one sentence. npt.flags has the same, but it imports yacs and torch."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {message} (--help shows the usage)\n")


def _import(name: str, remedy: str) -> Any:
    try:
        with warnings.catch_warnings():  # clip's import warns; users cannot change that
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            return importlib.import_module(name)
    except Exception as err:  # a broken binary raises OSError or RuntimeError, among others
        reason = " ".join(str(err).split())
        message = f"{name} cannot be imported ({type(err).__name__}: {reason}): {remedy}"
        raise Fault(message) from err


def check_engine() -> str:
    """The `dassl` in use and its trainers."""
    remedy = f"set {engine.VARIABLE}=embedded"
    try:
        name, version, path = engine.describe()
    except Exception as err:
        raise Fault(f"no engine can be used: {err}") from err
    _import("dassl.engine", remedy)
    broken = engine.fault(Path(path)) if name == "installed" else ""
    if broken:
        raise Fault(
            f"installed Dassl {version} at {path}: its {broken} do not work with this torch: "
            f"{remedy}"
        )
    return f"{name} dassl {version} at {path}"


def check_torch() -> str:
    """The version of torch, at least 2.1."""
    torch = _import("torch", "pip install torch")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1):
        raise Fault(f"torch is {torch.__version__}: npt needs 2.1 or newer (pip install -U torch)")
    return f"torch {torch.__version__} at {Path(torch.__file__).parent}"


def check_torchvision() -> str:
    """The version of torchvision."""
    torchvision = _import(
        "torchvision", "install the torchvision release for the installed version of torch"
    )
    return f"torchvision {torchvision.__version__} at {Path(torchvision.__file__).parent}"


def check_clip() -> str:
    """OpenAI's CLIP: its version, its folder, and the distribution that installed it."""
    install = 'pip install clip-anytorch "setuptools<81"'
    clip = _import("clip", install)
    where = Path(clip.__file__).parent if clip.__file__ else "an empty folder on the path"
    if not (hasattr(clip, "load") and hasattr(clip, "tokenize")):
        raise Fault(
            f"the clip at {where} is not OpenAI's CLIP (a package of the same name): "
            f"uninstall it or remove it from the path, then {install}"
        )
    names = importlib.metadata.packages_distributions().get("clip", [])
    known = [f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(names)]
    if len(known) > 1:
        raise Fault(
            f"several distributions install clip ({', '.join(known)}): uninstall all, then "
            f"{install}"
        )
    return f"clip from {known[0] if known else 'no distribution, just a folder'} at {where}"


def check_device() -> str:
    """The GPUs after a small computation on the first one, or the CPU."""
    torch = _import("torch", "pip install torch")
    if not torch.cuda.is_available():
        return f"the CPU, {torch.get_num_threads()} threads (torch finds no CUDA device)"
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as err:
        reason = " ".join(str(err).split())
        raise Fault(
            f"the GPU cannot be used ({reason}): install a torch built for it, or set USE_CUDA "
            "False"
        ) from err
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names))


def check_weights(backbone: str) -> str:
    """The CLIP `backbone` loaded; without one, the checksums of OpenAI's models that are here."""
    from npt.backbones import sources
    from npt.backbones.loading import load_clip
    from npt.errors import NPTError

    if backbone:
        try:
            size = load_clip(backbone).visual.input_resolution
        except NPTError as err:
            raise Fault(str(err)) from err
        return f"{backbone} takes images of {size} x {size} pixels"
    here = {name: path for name, path in sources.cached().items() if path.is_file()}
    for name, path in here.items():
        if not sources.is_whole(name):
            raise Fault(f"{path} is damaged: delete it, and it is downloaded again")
    folder = sources.CACHE.expanduser()
    found = f"{', '.join(here)} in {folder}" if here else f"no CLIP of OpenAI's in {folder} yet"
    return f"{found}; others are downloaded when they are named; tiny comes with npt"


def check_data(root: str) -> str:
    """The data sets in the folder `root`, or the images of one's own."""
    if not root:
        return "no --root is given: the mini suite is made when it is needed"
    from npt.data.check import survey
    from npt.datasets import CustomFolder
    from npt.datasets.base import check_classes, data_root
    from npt.datasets.catalog import CATALOG
    from npt.errors import NPTError

    try:
        folder = data_root(root)
        if not folder.is_dir():
            raise Fault(f"--root {root} is not a folder: give the folder of the data")
        reports = [survey(row, folder) for row in CATALOG.values()]
        found = [report for report in reports if report.found]
        bad = [report.row.name for report in found if not report.usable]
        if bad:
            how = f"python -m npt.data check {' '.join(bad)} --root {root}"
            raise Fault(f"{', '.join(bad)} cannot be used: `{how}` says why")
        if found:
            return f"{', '.join(report.row.name for report in found)} in {folder}"
        lists = CustomFolder.lists(folder)
        classes = len(check_classes(lists, folder))
    except NPTError as err:
        raise Fault(str(err)) from err
    numbers = ", ".join(f"{len(images):,} for {part}" for part, images in lists.items())
    return f"{classes} classes of your own images in {folder}: {numbers}"


CHECKS: dict[str, Callable[[], str]] = {
    "engine": check_engine,
    "torch": check_torch,
    "torchvision": check_torchvision,
    "clip": check_clip,
    "device": check_device,
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt doctor",
        description="Report what is installed and whether it works: engine, torch, clip, GPU, "
        "weights and data.",
        epilog="Exit code 0 if everything works, else 1. Example: npt doctor --root my_images "
        "--backbone ViT-B/16",
    )
    parser.add_argument("--root", default="", help="folder of the data sets, or of your images")
    parser.add_argument("--backbone", default="", help="a CLIP to load")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each check. Returns 0 if everything works, else 1."""
    args = build_parser().parse_args(argv)
    checks: dict[str, Callable[[], str]] = {
        **CHECKS,
        "weights": partial(check_weights, args.backbone),
        "data": partial(check_data, args.root),
    }
    faults = 0
    for name, check in checks.items():
        try:
            print(f"{name}: {check()}: fine")
        except Fault as fault:
            faults += 1
            print(f"{name}: NOT FINE: {fault}")
    print("Everything is fine." if not faults else f"Not fine: {faults} of {len(checks)}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
