"""Loading of every kind of CLIP: OpenAI's models, a file, or the small model "tiny" of npt.

`load_clip` always returns a `clip.model.CLIP`, frozen, in eval mode, in float32, with exactly the
values of the file (`build_model` of the package clip rounds them to float16).
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from npt.backbones.archive import is_archive, read_archive
from npt.backbones.kept import kept_or_loaded
from npt.backbones.openai import ADDRESS, MODELS, openai_clip
from npt.download import fetch, has_checksum
from npt.errors import NPTError
from npt.files import atomic_write

if TYPE_CHECKING:
    from clip.model import CLIP

CACHE = Path("~/.cache/clip")
TINY_FILE = Path(__file__).with_name("tiny_clip.npz")
VOCABULARY = 49408
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first number in files of torch before 1.6
SCALARS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files, not weights
NEEDED = (
    "visual.conv1.weight",
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.weight",
    "text_projection",
    "logit_scale",
)


def load_clip(name: str, device: str | torch.device = "cpu") -> CLIP:
    """A frozen CLIP in float32, in eval mode.

    name: one of OpenAI's `MODELS`, the path of a JIT archive or of a state dict, or "tiny".
    Nothing in a file is executed (see `npt.backbones.archive`), and its checksums are verified.
    Raises NPTError if there is no such model, or it cannot be read or downloaded.
    """
    read: Callable[[Any], dict[str, Any]] = read_file
    file: str | Path = name
    if name == "tiny":
        file, read = TINY_FILE, read_tiny
    elif name in MODELS:
        file = str(download(name))
    elif not os.path.isfile(name):
        raise NPTError(
            f"unknown CLIP {name!r} in MODEL.BACKBONE.NAME: it is not a file; set it to a file's "
            f"path, to 'tiny', or to one of {', '.join(MODELS)}"
        )

    def load() -> CLIP:
        return build(read(file), str(file)).float().eval().requires_grad_(False)

    return kept_or_loaded(Path(file), load).to(device)


def fetch_openai(name: str) -> Path:
    """Download OpenAI's file of that name to the cache of the package clip, if it is not there.

    An interrupted download is continued. (clip's own download would start from the beginning.)
    """
    sha256, file_name = MODELS[name]
    file = cached()[name]
    if file.is_file():
        if is_whole(name):
            return file
        file.unlink()
    return fetch(f"{ADDRESS}/{sha256}/{file_name}", file, f"sha256:{sha256}")


def cached() -> dict[str, Path]:
    """The place of each of OpenAI's models in the cache of the package clip, by name."""
    return {name: CACHE.expanduser() / file_name for name, (_, file_name) in MODELS.items()}


def file_of(name: str) -> Path:
    """The file of the CLIP of that name, as in `load_clip`; it need not be there."""
    if name == "tiny":
        return TINY_FILE
    return cached()[name] if name in MODELS else Path(name)


def is_whole(name: str) -> bool:
    """Whether the file of that name in the cache has the published checksum."""
    return has_checksum(cached()[name], f"sha256:{MODELS[name][0]}")


def download(name: str) -> Path:
    """The file of one of OpenAI's models, in the cache ~/.cache/clip or from the network."""
    try:
        return fetch_openai(name)
    except (NPTError, OSError) as error:
        reason = str(error).rstrip(".")
        raise NPTError(
            f"CLIP {name} is not in ~/.cache/clip and cannot be downloaded ({reason}); copy its "
            "file from another machine and set MODEL.BACKBONE.NAME to the path, or use 'tiny'"
        ) from error


def read_file(path: str) -> dict[str, Any]:
    """The state dict in a JIT archive or in a file that torch.save wrote; nothing is executed.

    NPTError if the file is neither, or a checksum in it is wrong.
    """
    try:
        return read_archive(path) if is_archive(path) else _read_legacy(path)
    except Exception as error:  # zipfile, pickle and torch raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise NPTError(
            f"cannot read {path} (MODEL.BACKBONE.NAME) as a JIT archive or a state dict: {reason}; "
            "get the file again"
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
        stacklevel=6,  # the caller of load_clip
    )
    return state


def build(state: dict[str, Any], source: str) -> CLIP:
    """A CLIP in float32 with exactly the values of `state`; `source` is named in errors."""
    missing = [key for key in NEEDED if key not in state]
    if missing:
        raise NPTError(
            f"{source} (MODEL.BACKBONE.NAME) is not a CLIP's state dict: it has no {missing[0]}"
        )
    weights = {key: value for key, value in state.items() if key not in SCALARS}
    where = f"{source} (MODEL.BACKBONE.NAME)"
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise NPTError(f"{where} is not a CLIP's state dict: its entry {key!r} is no tensor")
        if not torch.isfinite(value).all():
            raise NPTError(
                f"{where} has infinite numbers or NaN in {key}: it is damaged, or its training "
                "failed; get the file again"
            )
    build_model = openai_clip().model.build_model
    try:
        model = build_model(dict(weights)).float()
        model.load_state_dict(weights)  # build_model has rounded the values
    except Exception as error:  # the constructors of clip and torch raise many types
        reason = " ".join(str(error).split())[:300]
        raise NPTError(f"{where} is not a CLIP's state dict: {reason}") from error
    return model


def base_embedding(width: int) -> np.ndarray:
    """(49408, width) embeddings; "tiny" has them for tokens that did not occur in its training."""
    values = 0.02 * np.random.default_rng(0).standard_normal((VOCABULARY, width))
    return values.astype(np.float16).astype(np.float32)


def read_tiny(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that `pack_tiny` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # numpy does not read all that is needed for the checksums
        if damaged:
            raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as arrays:
            state = {key: np.array(arrays[key], dtype=np.float32) for key in arrays.files}
        ids, rows = state.pop("token_ids").astype(np.int64), state.pop("token_rows")
        state["token_embedding.weight"] = base_embedding(rows.shape[1])
        state["token_embedding.weight"][ids] = rows
    except Exception as error:  # zipfile, zlib and numpy raise many types
        raise NPTError(
            f"the small CLIP cannot be read from {path} ({error}); reinstall npt-clip, or create "
            "the file with scripts/pretrain_tiny.py"
        ) from error
    return {key: torch.from_numpy(value) for key, value in state.items()}


def pack_tiny(
    state_dict: dict[str, Tensor], token_ids: np.ndarray | Tensor, path: str | Path
) -> None:
    """Write a small CLIP as float16 arrays, with the embeddings of the tokens `token_ids` only.

    `read_tiny` takes the other embeddings from `base_embedding`. The file is written atomically.
    """
    arrays: dict[str, Any] = {
        key: value.detach().cpu().numpy().astype(np.float16)
        for key, value in state_dict.items()
        if key not in SCALARS
    }
    ids = np.unique(np.asarray(token_ids, dtype=np.int32))
    arrays["token_ids"] = ids
    arrays["token_rows"] = arrays.pop("token_embedding.weight")[ids]
    with atomic_write(Path(path), "wb") as file:
        np.savez_compressed(file, **arrays)
