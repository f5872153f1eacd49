"""The family's methods, one row here and one file each; `npt.py` has them with NPT.

Importing this package imports no method: `npt.trainers.MaPLe` is loaded when it is asked for, and a
host that has its own `MaPLe` never loads ours.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from npt import config
from npt.config import COUNT, Key, one_of

if TYPE_CHECKING:
    from npt.trainers.cocoop import CoCoOp
    from npt.trainers.coop import CoOp
    from npt.trainers.maple import MaPLe
    from npt.trainers.zsclip import ZeroshotCLIP

__all__ = ["METHODS", "CoCoOp", "CoOp", "MaPLe", "ZeroshotCLIP", "add_to_registry"]

PREC = Key("fp16", one_of("fp16", "fp32", "amp"))  # precision of the frozen CLIP
DEPTH = config.Check(lambda v: type(v) is int and 1 <= v <= 12, "a whole number from 1 to 12")


@dataclass(frozen=True)
class Method:
    """A method: its file, its config node TRAINER.<node>, and the keys of that node."""

    module: str
    node: str = ""
    keys: dict[str, Key] = field(default_factory=dict)


METHODS = {
    "ZeroshotCLIP": Method("zsclip"),
    "CoOp": Method(
        "coop",
        "COOP",
        {
            "N_CTX": Key(16, COUNT),  # context tokens
            "CSC": Key(False),  # a context for each class
            "CTX_INIT": Key(""),  # words that the context starts from; "": random
            "PREC": PREC,
            "CLASS_TOKEN_POSITION": Key("end", one_of("end", "middle", "front")),
        },
    ),
    "CoCoOp": Method(
        "cocoop", "COCOOP", {"N_CTX": Key(16, COUNT), "CTX_INIT": Key(""), "PREC": PREC}
    ),
    "MaPLe": Method(
        "maple",
        "MAPLE",
        {
            "N_CTX": Key(2, COUNT),
            "CTX_INIT": Key("a photo of a"),
            "PREC": PREC,
            "PROMPT_DEPTH": Key(9, DEPTH),  # layers that have prompts
        },
    ),
}

for _method in METHODS.values():
    for _name, _key in _method.keys.items():
        config.add(f"TRAINER.{_method.node}.{_name}", _key)


def __getattr__(name: str) -> Any:
    """The class of a method."""
    if name not in METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{METHODS[name].module}"), name)


def add_to_registry() -> None:
    """Register the methods with the engine, under names that no host has taken; safe to repeat."""
    from dassl.engine import TRAINER_REGISTRY

    for name in METHODS:
        if name not in TRAINER_REGISTRY.registered_names():
            TRAINER_REGISTRY.register(__getattr__(name))


def npt_class_of(trainer: type) -> type | None:
    """The class in `npt.trainers.npt` that wraps one of our own trainers; None for another's."""
    if not trainer.__module__.startswith(f"{__name__}."):
        return None
    from npt.trainers import npt as with_npt

    cls = getattr(with_npt, f"{trainer.__name__}NPT", None)
    return cls if cls is not None and trainer in cls.__mro__ else None
