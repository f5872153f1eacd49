"""`python -m npt.engine`: what is in use, and whether each part of it is fine.

Exit code 1 where something is not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from npt import engine


class Fault(Exception):
    """What is wrong with one part, and what to do about it, in a sentence."""


def _import(name: str, cure: str):
    try:
        with warnings.catch_warnings():  # what clip's import warns of is not for users to mend
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            return importlib.import_module(name)
    except Exception as err:  # a broken binary raises OSError or RuntimeError, among others
        reason = " ".join(str(err).split())
        raise Fault(f"{name} cannot be imported ({type(err).__name__}: {reason}): {cure}") from err


def check_engine() -> str:
    """The `dassl` in use, down to its trainers."""
    cure = f"set {engine.VARIABLE}=embedded"
    try:
        name, version, path = engine.describe()
    except Exception as err:
        raise Fault(f"no engine can be used: {err}") from err
    _import("dassl.engine", cure)
    broken = engine.broken_on_this_torch(Path(path)) if name == "installed" else ""
    if broken:
        raise Fault(
            f"installed Dassl {version} at {path}: its {broken} do not work with this torch: {cure}"
        )
    return f"{name} dassl {version} at {path}"


def check_torch() -> str:
    torch = _import("torch", "pip install torch")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1):
        raise Fault(f"torch is {torch.__version__}: npt needs 2.1 or newer (pip install -U torch)")
    return f"torch {torch.__version__} at {Path(torch.__file__).parent}"


def check_torchvision() -> str:
    torchvision = _import(
        "torchvision", "install the torchvision that belongs to the installed torch"
    )
    return f"torchvision {torchvision.__version__} at {Path(torchvision.__file__).parent}"


def check_clip() -> str:
    """OpenAI's CLIP: its version, folder, and the distribution that it came from."""
    cure = 'pip install clip-anytorch "setuptools<81"'
    clip = _import("clip", cure)
    where = Path(clip.__file__).parent if clip.__file__ else "an empty folder on the path"
    if not (hasattr(clip, "load") and hasattr(clip, "tokenize")):
        raise Fault(
            f"the clip at {where} is not OpenAI's CLIP (a package of the same name): "
            f"uninstall it or take it off the path, then {cure}"
        )
    names = importlib.metadata.packages_distributions().get("clip", [])
    known = [f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(names)]
    if len(known) > 1:
        raise Fault(
            f"several distributions install clip ({', '.join(known)}): uninstall all, then {cure}"
        )
    return f"clip from {known[0] if known else 'no distribution, just a folder'} at {where}"


def check_device() -> str:
    torch = _import("torch", "pip install torch")
    if not torch.cuda.is_available():
        return f"the CPU, {torch.get_num_threads()} threads (torch sees no CUDA device)"
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as err:
        reason = " ".join(str(err).split())
        raise Fault(
            f"the GPU cannot be used ({reason}): install a torch built for it, or USE_CUDA False"
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


def main() -> int:
    """Print a line for each part; 0 where all are fine, else 1."""
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
