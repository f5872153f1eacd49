"""Reading the weights of a CLIP from files of every kind; nothing in a file is executed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from npt.backbones.archive import is_archive, read_archive, read_shapes, unwrapped
from npt.backbones.tiny import read_tiny
from npt.errors import NPTError

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first number in files of torch before 1.6
SAFETENSORS = ".safetensors"
TINY = ".npz"
ANCHORS = (  # names of weights, of which each kind of CLIP has one
    "text_model.embeddings.token_embedding.weight",
    "text.token_embedding.weight",
    "token_embedding.weight",
)


def read(files: Iterable[Path]) -> dict[str, Any]:
    """The state dict in the files, each of which has a part of it.

    A file is a JIT archive, what torch.save wrote (the state dict, or a training's checkpoint that
    contains it), safetensors, or npt's own of "tiny". If all names of the CLIP have a prefix, such
    as the "module." of a training on several GPUs, they are without it, and names without it are
    left out. NPTError if a file cannot be read, or a checksum in it is wrong.
    """
    return without_prefix({key: x for file in files for key, x in _read(file).items()})


def without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without what is before the names of a CLIP's weights."""
    for name in ANCHORS:
        for key in state:
            if key == name:
                return state
            if key.endswith(f".{name}"):
                prefix = key.removesuffix(name)
                return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
    return state


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `read` returns, for most kinds of files without reading them.

    NPTError as in `read`.
    """
    return without_prefix({key: x for file in files for key, x in _shapes(file).items()})


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == SAFETENSORS:
        with _safetensors(file) as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    if file.suffix != TINY and is_archive(str(file)):
        return _tried(file, read_shapes)
    tensors = {key: x for key, x in _read(file).items() if isinstance(x, torch.Tensor)}
    return {key: tuple(x.shape) for key, x in tensors.items()}


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == TINY:
        return read_tiny(file)
    if file.suffix == SAFETENSORS:
        with _safetensors(file) as content:
            return {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    return _tried(file, read_archive if is_archive(str(file)) else _read_legacy)


def _tried(file: Path, reader: Any) -> dict[str, Any]:
    try:
        return reader(str(file))
    except Exception as error:  # zipfile, pickle and torch raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise NPTError(
            f"cannot read {file} (MODEL.BACKBONE.NAME) as a JIT archive or a state dict: {reason}; "
            "get the file again"
        ) from error


def _safetensors(file: Path) -> Any:
    """The open file, a context manager."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise NPTError(
            f"{file} (MODEL.BACKBONE.NAME) is a file of safetensors, which is not installed: "
            'pip install "npt-clip[hf]"'
        ) from error
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise NPTError(
            f"cannot read {file} (MODEL.BACKBONE.NAME) as safetensors: {error}; get the file again"
        ) from error


def _read_legacy(path: str) -> dict[str, Any]:
    """The state dict in a file of torch before 1.6, which has no checksums."""
    content = Path(path).read_bytes()
    if LEGACY not in content[:32]:
        raise ValueError("it is not a file of torch")
    stream = io.BytesIO(content)
    state = torch.load(stream, map_location="cpu", weights_only=True)
    if stream.tell() < len(content):
        raise ValueError("it continues after its end")
    if not isinstance(state, dict):
        raise ValueError(f"it contains a {type(state).__name__}, not a state dict")
    warnings.warn(
        f"{path} has the format of torch before 1.6, in which damage cannot be noticed: save the "
        "state dict again with torch.save.",
        stacklevel=8,  # the caller of load_clip
    )
    found: Any = unwrapped(state, lambda x: x if isinstance(x, Mapping) else None)
    return {key: value for key, value in found.items() if isinstance(key, str)}
