"""CoCoOp and MaPLe with the loss terms of NPT; `--trainer CoCoOpNPT` and `--trainer MaPLeNPT`.

The terms are the rows of `npt.terms`, and `npt.trainer.NPTMixin` adds them to the loss. In a host
that has its own CoCoOp or MaPLe these names wrap the host's, and `<Name>NPT` wraps any trainer.
"""

from npt.trainer import NPTMixin
from npt.trainers.cocoop import CoCoOp
from npt.trainers.maple import MaPLe


class CoCoOpNPT(NPTMixin, CoCoOp):
    """CoCoOp, its loss + w1 L_LC + w2 L_MI; texts are those of each image."""


class MaPLeNPT(NPTMixin, MaPLe):
    """MaPLe, its loss + w1 L_LC + w2 L_MI."""
