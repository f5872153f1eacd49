"""The small CLIP "tiny", which comes with npt: its file, and how it is packed and read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npt.backbones.catalog import VOCABULARY
from npt.errors import NPTError
from npt.files import atomic_write


def base_embedding(width: int) -> np.ndarray:
    """(49408, width) embeddings; "tiny" has them for tokens that did not occur in its training."""
    values = 0.02 * np.random.default_rng(0).standard_normal((VOCABULARY, width))
    return values.astype(np.float16).astype(np.float32)


def read_tiny(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that `pack_tiny` wrote. NPTError if it cannot be read."""
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
        key: value.detach().cpu().numpy().astype(np.float16) for key, value in state_dict.items()
    }
    ids = np.unique(np.asarray(token_ids, dtype=np.int32))
    arrays["token_ids"] = ids
    arrays["token_rows"] = arrays.pop("token_embedding.weight")[ids]
    with atomic_write(Path(path), "wb") as file:
        np.savez_compressed(file, **arrays)
