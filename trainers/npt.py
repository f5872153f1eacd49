"""CoCoOp and MaPLe with the loss terms of NPT: `--trainer CoCoOpNPT` and `--trainer MaPLeNPT`.

`npt.terms` defines the terms, and `npt.trainer.NPTMixin` adds them to the loss. If a host has its
own CoCoOp or MaPLe, these names add NPT to the host's trainer. `<Name>NPT` does so for any trainer.
"""

from npt.trainer import NPTMixin
from npt.trainers.cocoop import CoCoOp
from npt.trainers.maple import MaPLe


class CoCoOpNPT(NPTMixin, CoCoOp):
    """CoCoOp with the loss L + w1 L_LC + w2 L_MI, where each image has text features of its own."""


class MaPLeNPT(NPTMixin, MaPLe):
    """MaPLe with the loss L + w1 L_LC + w2 L_MI."""
