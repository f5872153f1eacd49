"""A CLIP that is loaded once by a process that executes many runs; each run gets an exact copy.

A load of OpenAI's models also changes the random state (see `npt.backbones.building`), which the
figures of a run follow from. So a load that is replaced by a copy leaves the state that the load
would have left: it is known from an earlier load that began in the same state. From a state that
is new, the CLIP is loaded again.

Only inside `clip_kept`: a process with one run would only hold a second copy of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clip.model import CLIP

    from npt.backbones.catalog import Form

_asked = 0  # the `clip_kept` blocks that this process is in
_kept: Kept | None = None


class Kept:
    """The CLIP of some files as it was loaded; random states before loading -> those after it."""

    def __init__(self, files: tuple[Any, ...]):
        self.files = files
        self.model: CLIP | None = None
        self.states: dict[bytes, Tensor] = {}

    def copy(self, load: Callable[[], CLIP]) -> CLIP:
        before = torch.get_rng_state().numpy().tobytes()
        if self.model is None or before not in self.states:
            self.model = load()
            self.states[before] = torch.get_rng_state()
        torch.set_rng_state(self.states[before])
        return copy.deepcopy(self.model)


@contextmanager
def clip_kept() -> Iterator[None]:
    """A `with` block whose loads are kept; what is kept stays until the next block of the process.

    One CLIP is kept, that of the last file, in float32 and in the memory of the processor.
    """
    global _asked
    _asked += 1
    try:
        yield
    finally:
        _asked -= 1


def _state(file: Path) -> tuple[Any, ...]:
    """Changes when a file is replaced."""
    status = file.stat()
    return str(file.resolve()), status.st_ino, status.st_size, status.st_mtime_ns


def kept_or_loaded(files: Sequence[Path], form: Form | None, load: Callable[[], CLIP]) -> CLIP:
    """What `load` returns for some files: inside `clip_kept` a copy of what it returned before.

    form: what is written about the files. Files that were replaced are loaded again.
    """
    global _kept
    if not _asked or not all(file.is_file() for file in files):
        return load()
    identity = (form, *(_state(file) for file in files))
    if _kept is None or _kept.files != identity:
        _kept = None  # first, so that there are never two
        _kept = Kept(identity)
    return _kept.copy(load)
