"""A CLIP that is loaded once by a process that executes many runs; each run gets an exact copy.

Loading reads a file and constructs the modules, whose constructors fill the weights with random
numbers first. These numbers are overwritten, but the random state after them is what the figures
of a run follow from. So a load that is replaced by a copy leaves the state that the load would
have left: it is known from an earlier load that began in the same state. From a state that is new,
the CLIP is loaded again.

Only inside `clip_kept`: a process with one run would only hold a second copy of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clip.model import CLIP

_asked = 0  # the `clip_kept` blocks that this process is in
_kept: Kept | None = None


class Kept:
    """The CLIP of a file as it was loaded, and the random states after loading, by that before."""

    def __init__(self, file: tuple[Any, ...]):
        self.file = file
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


def kept_or_loaded(file: Path, load: Callable[[], CLIP]) -> CLIP:
    """What `load` returns for a file: inside `clip_kept` a copy of what it returned before.

    A file that was replaced is loaded again.
    """
    global _kept
    if not _asked or not file.is_file():
        return load()
    status = file.stat()
    identity = (str(file.resolve()), status.st_ino, status.st_size, status.st_mtime_ns)
    if _kept is None or _kept.file != identity:
        _kept = None  # first, so that there are never two
        _kept = Kept(identity)
    return _kept.copy(load)
