"""The family's trainers, registered under names that no host has taken."""

from dassl.engine import TRAINER_REGISTRY
from npt.trainers.cocoop import CoCoOp
from npt.trainers.coop import CoOp
from npt.trainers.maple import MaPLe
from npt.trainers.zsclip import ZeroshotCLIP

__all__ = ["CoCoOp", "CoOp", "MaPLe", "ZeroshotCLIP"]

for trainer in (ZeroshotCLIP, CoOp, CoCoOp, MaPLe):
    if trainer.__name__ not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(trainer)
