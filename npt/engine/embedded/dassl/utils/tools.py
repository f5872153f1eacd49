"""Files, seeds, images, and information about the machine."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import os.path as osp
import platform
import random
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any

from .errors import InvalidValue, MissingFile, UnreadableFile

if TYPE_CHECKING:
    from PIL import Image

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
    """Create a folder and its parents. An empty name means the current folder."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file. Warns if it is not."""
    found = osp.isfile(fpath)
    if not found:
        warnings.warn(f'There is no file at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """The names in a folder, except those that begin with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def atomic_write(fpath: str, mode: str = "wb") -> AbstractContextManager[IO[Any]]:
    """Open a temporary file that replaces `fpath` when the `with` block ends without an error.

    So `fpath` always has its complete old content or its complete new content.
    """
    from npt.files import atomic_write as write  # not at the top: npt imports dassl

    return write(fpath, mode)


def read_json(fpath: str) -> Any:
    """The content of a JSON file. InvalidValue if it is not valid JSON."""
    with open(fpath, encoding="utf-8") as f:
        try:
            return json.load(f)
        except (ValueError, RecursionError) as err:
            raise InvalidValue(
                f'The file "{fpath}" is not valid JSON ({err}): replace or delete it'
            ) from err


def write_json(obj: Any, fpath: str) -> None:
    """Write `obj` as indented JSON, atomically. Creates the folder if it does not exist."""
    with atomic_write(fpath, "w") as f:
        json.dump(obj, f, indent=4, separators=(",", ": "))


def read_image(path: str, upright: bool = False) -> Image.Image:
    """Read an image in RGB, as `npt.pictures.read_picture` does.

    upright: apply the rotation that its EXIF data note
    MissingFile or UnreadableFile (OSErrors) if that is not possible.
    """
    from npt.pictures import MissingPicture, UnreadablePicture, read_picture  # npt imports dassl

    try:
        return read_picture(path, upright)
    except MissingPicture as err:
        raise MissingFile(f"{err}: check DATASET.ROOT") from err
    except UnreadablePicture as err:
        raise UnreadableFile(str(err)) from err


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def tolist_if_not(x: Any) -> list:
    """`x` if it is a list, else [x]."""
    return x if isinstance(x, list) else [x]


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string in `b` that is most similar to `a`; None if `b` is empty."""
    candidates = list(b)
    lowered = a.lower()
    return max(
        candidates,
        key=lambda s: difflib.SequenceMatcher(None, lowered, s.lower()).ratio(),
        default=None,
    )


def check_availability(requested: str, available: Iterable[str], key: str = "") -> None:
    """InvalidValue, with a list of all available names, if `requested` is not available.

    key: the config key that contains the name, for the message
    """
    names = list(available)
    if requested in names:
        return
    nearest = get_most_similar_str_to_a_from_b(requested, names)
    hint = f' (did you mean "{nearest}"?)' if requested and nearest else ""
    listed = f"use one of {', '.join(sorted(names))}" if names else "nothing is registered"
    subject = f'{key} is "{requested}", which' if key else f'"{requested}"'
    raise InvalidValue(f"{subject} is not available{hint}: {listed}")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def collect_env_info() -> str:
    """A few lines about the machine and the libraries, for the beginning of a log."""
    import torch

    lines = {
        "OS": platform.platform(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
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
