"""Whether the keys TRAINER.NPT.* of a config act on its trainer: checked when it is frozen."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from npt import config
from npt.errors import NPTError
from npt.names import SUFFIX, trainer_name
from npt.remedies import remedies_on
from npt.terms import TERMS


def check_effect(cfg: Any) -> None:
    """NPTError if a remedy is on that the config's trainer does not have.

    A warning if a weight of a term is given to a trainer without terms.
    """
    name, settings = trainer_name(cfg), cfg.TRAINER.get("NPT")
    if not name or name.endswith(SUFFIX) or settings is None:
        return
    weighted = [t.weight for t in TERMS.values() if t.weight_in(settings) != t.default]
    if weighted:
        warnings.warn(
            f"TRAINER.NPT.{weighted[0]} acts on NPT trainers and not on {name}: name {name}NPT.",
            stacklevel=5,
        )
    on = remedies_on(settings)
    if on and not _has_remedies(name):
        raise NPTError(
            f"TRAINER.NPT.{on[0].key} does not act on this repository's own trainer {name}: name "
            f"{name}NPT, with TRAINER.NPT.W1 0 TRAINER.NPT.W2 0 to have it without the terms of NPT"
        )


def _has_remedies(name: str) -> bool:
    """Whether a trainer is one of ours; one that is not registered yet is taken for ours."""
    engine = sys.modules.get("dassl.engine")
    if engine is None or name not in engine.TRAINER_REGISTRY.registered_names():
        return True
    from npt.host.registry import is_ours

    return is_ours(engine.TRAINER_REGISTRY.get(name))


config.RULES.append(check_effect)
