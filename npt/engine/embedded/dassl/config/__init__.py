"""The configuration: `get_cfg_default` gives a fresh copy, `clean_cfg` drops other trainers."""

from yacs.config import CfgNode

from .defaults import _C as cfg_default

__all__ = ["cfg_default", "clean_cfg", "get_cfg_default"]


def get_cfg_default() -> CfgNode:
    """A copy of the defaults, to be merged with files and flags and then frozen."""
    return cfg_default.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove from `cfg.TRAINER` the nodes of all trainers but `trainer`, in place."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
