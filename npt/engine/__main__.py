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


CHECKS: dict[str, Callable[[], str]] = {
    "engine": check_engine,
    "torch": check_torch,
    "torchvision": check_torchvision,
    "clip": check_clip,
    "device": check_device,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each check. Returns 0 if everything works, else 1."""
    Parser(
        prog="npt doctor",
        description="Report what is installed and whether it works.",
        epilog="Exit code 0 if everything works, else 1.",
    ).parse_args(argv)
    faults = 0
    for name, check in CHECKS.items():
        try:
            print(f"{name}: {check()}: fine")
        except Fault as fault:
            faults += 1
            print(f"{name}: NOT FINE: {fault}")
    print("Everything is fine." if not faults else f"Not fine: {faults} of {len(CHECKS)}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
