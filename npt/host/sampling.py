"""DATALOADER.TRAIN_X.SAMPLER ClassBalancedSampler, for the data manager of any engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npt import engine
from npt.imbalance import Labelled
from npt.sampling import ClassBalancedSampler


def wrap_build_sampler() -> None:
    """Let the data manager of an installed Dassl build our sampler; repeating it changes nothing.

    This replaces `build_sampler` in Dassl's data manager. The embedded engine has our sampler in
    its own table.
    """
    if engine.describe().name == "embedded":
        return
    from dassl.data import data_manager

    build = data_manager.build_sampler
    if build.__module__ == __name__:
        return

    def build_sampler(
        sampler_type: str, cfg: Any = None, data_source: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if sampler_type == ClassBalancedSampler.__name__:
            return class_balanced(cfg, data_source)
        return build(sampler_type, cfg, data_source, *args, **kwargs)

    data_manager.build_sampler = build_sampler


def class_balanced(cfg: Any, data_source: Sequence[Labelled]) -> ClassBalancedSampler:
    """The sampler of a list of Datum, with the power of the config."""
    return ClassBalancedSampler(data_source, cfg.DATALOADER.TRAIN_X.get("BALANCE_POWER", 1.0))
