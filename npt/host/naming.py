"""Functions of the engine that take a trainer's name: what they do for the name `<X>NPT`.

A config keeps that name as X and a mark (`npt.names`), so that code of the host reads the name of
its own trainer.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from npt.host.registry import FindsNPTTrainers, is_ours
from npt.names import SUFFIX, tell_host_trainers, trainer_name

_built: deque[str] = deque(maxlen=1)  # the name of the trainer that was built last


def host_trainer(name: str) -> str | None:
    """X if `name` is `<X>NPT` for a trainer X of the host; None if it is another name.

    A trainer of ours is none of the host, nor is one that the host itself calls `<X>NPT`.
    """
    engine = sys.modules.get("dassl.engine")
    registry = getattr(engine, "TRAINER_REGISTRY", None)
    base = name.removesuffix(SUFFIX)
    if not isinstance(registry, FindsNPTTrainers) or not base or base == name:
        return None
    names = registry.own_names()
    if name in names or base not in names:
        return None
    return None if is_ours(registry.get(base)) else base


tell_host_trainers(host_trainer)


def wrap_build_trainer() -> None:
    """Let the engine's `build_trainer` build `<X>NPT` where the config asks for it.

    It is replaced in every module that has imported it already.
    """
    from dassl.engine import TRAINER_REGISTRY, build

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def build_trainer(cfg: Any, *args: Any, **kwargs: Any) -> Any:
            name = trainer_name(cfg)
            _built.append(name)
            if name == cfg.TRAINER.NAME:
                return original(cfg, *args, **kwargs)
            if cfg.VERBOSE:
                print(f"Loading trainer: {name}")
            return TRAINER_REGISTRY.get(name)(cfg, *args, **kwargs)

        return build_trainer

    _replace_everywhere(build.build_trainer, make)


def last_built() -> str:
    """The name of the trainer that was built last, or is being built; "" if there is none."""
    return _built[-1] if _built else ""


def wrap_clean_cfg() -> None:
    """Let Dassl's `clean_cfg` keep the node of the trainer that NPT wraps."""
    from dassl import config as of_engine

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def clean_cfg(cfg: Any, trainer: str, *args: Any, **kwargs: Any) -> Any:
            base = trainer.removesuffix(SUFFIX) or str(cfg.TRAINER.NPT.get("BASE"))
            wrapped = base.upper() in cfg.TRAINER and trainer.upper() not in cfg.TRAINER
            return original(cfg, base if wrapped else trainer, *args, **kwargs)

        return clean_cfg

    _replace_everywhere(getattr(of_engine, "clean_cfg", None), make)  # older forks have none


def _replace_everywhere(original: Any, make: Callable[[Any], Any]) -> None:
    """Put `make(original)` in place of a function, in all modules; repeating it changes nothing."""
    if original is None or original.__module__ == __name__:
        return
    new, name = make(original), original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, new)
