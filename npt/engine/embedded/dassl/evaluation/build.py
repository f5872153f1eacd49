"""The registry of evaluators."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs: Any) -> Any:
    """Build the evaluator named by TEST.EVALUATOR. InvalidValue if it is not registered."""
    names = EVALUATOR_REGISTRY.registered_names()
    check_availability(cfg.TEST.EVALUATOR, names, key="TEST.EVALUATOR")
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
