"""The registry of trainers."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg) -> Any:
    """Build the trainer named by TRAINER.NAME. InvalidValue if it is not registered."""
    names = TRAINER_REGISTRY.registered_names()
    check_availability(cfg.TRAINER.NAME, names, key="TRAINER.NAME")
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
