"""Files, seeds, images, and what is known about the machine."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import os.path as osp
import platform
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from .errors import InvalidValue, MissingFile, UnreadableFile

__all__ = [
    "atomic_write",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def mkdir_if_missing(dirname: str) -> None:
    """Create a folder and its parents; an empty name is the current folder."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file; warns where it is not."""
    found = osp.isfile(fpath)
    if not found:
        warnings.warn(f'There is no file at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Names in a folder but those that begin with a dot; `sort` orders them."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


@contextmanager
def atomic_write(fpath: str, mode: str = "wb") -> Iterator[IO]:
    """A file that replaces `fpath` when all of it is on disk, or not at all.

    Whoever reads `fpath` sees the old content or the new, whenever the writer is killed.
    """
    folder, name = osp.split(osp.abspath(fpath))
    mkdir_if_missing(folder)
    temporary = osp.join(folder, f".{name}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, fpath)
    except BaseException:
        if osp.exists(temporary):
            os.remove(temporary)
        raise
    if os.name == "posix":  # the new name is on disk only when the folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(fpath: str) -> Any:
    """The content of a JSON file."""
    with open(fpath, encoding="utf-8") as f:
        return json.load(f)


def write_json(obj: Any, fpath: str) -> None:
    """Write `obj` as indented JSON, atomically, creating the folder where needed."""
    with atomic_write(fpath, "w") as f:
        json.dump(obj, f, indent=4, separators=(",", ": "))


def read_image(path: str) -> Image.Image:
    """The image as RGB; OSError naming the file where it is missing or unreadable."""
    if not osp.isfile(path):
        raise MissingFile(f'There is no image at "{path}": check DATASET.ROOT')
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        reason = str(err).rstrip(".")
        raise UnreadableFile(
            f'The image "{path}" cannot be read ({reason}): replace it or take it out of the data'
        ) from err


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def tolist_if_not(x: Any) -> list:
    """`x` where it is a list, else a list of it alone."""
    return x if isinstance(x, list) else [x]


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string of `b` most like `a`; None where `b` is empty."""
    candidates = list(b)
    lowered = a.lower()
    return max(
        candidates,
        key=lambda s: difflib.SequenceMatcher(None, lowered, s.lower()).ratio(),
        default=None,
    )


def check_availability(requested: str, available: Iterable[str]) -> None:
    """ValueError naming every available one where `requested` is not among them."""
    names = list(available)
    if requested in names:
        return
    nearest = get_most_similar_str_to_a_from_b(requested, names)
    hint = f' (did you mean "{nearest}"?)' if requested and nearest else ""
    listed = ", ".join(sorted(names)) or "nothing is registered"
    raise InvalidValue(f'"{requested}" is not one of the available ones{hint}: {listed}')


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def collect_env_info() -> str:
    """A few lines on the machine and the libraries, for the head of a log."""
    lines = {
        "OS": platform.platform(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": np.__version__,
        "Pillow": _version("pillow"),
        "CUDA used to build PyTorch": torch.version.cuda or "none",
        "CUDA available": torch.cuda.is_available(),
        "CPU threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        lines["cuDNN"] = torch.backends.cudnn.version()
        for i in range(torch.cuda.device_count()):
            lines[f"GPU {i}"] = torch.cuda.get_device_name(i)
    return "\n".join(f"{key}: {value}" for key, value in lines.items())
