"""The trainers of this package. `METHODS` is the table of methods; each has a module of its own.

Importing this package adds the config keys of the methods. It imports no trainer and registers
none: a trainer such as `npt.trainers.MaPLe` is imported at its first use, and `add_to_registry`
registers all of them. `npt.trainers.npt` defines the trainers that add NPT to these.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from npt import config
from npt.checks import one_of, whole
from npt.config import Key

if TYPE_CHECKING:
    from npt.trainers.cocoop import CoCoOp
    from npt.trainers.coop import CoOp
    from npt.trainers.maple import MaPLe
    from npt.trainers.zsclip import ZeroshotCLIP

__all__ = ["METHODS", "CoCoOp", "CoOp", "MaPLe", "ZeroshotCLIP", "add_to_registry"]

PREC = Key(
    "fp16",
    "precision of the frozen CLIP; fp16 needs a GPU, amp is mixed precision",
    one_of("fp16", "fp32", "amp"),
)
TOKENS = whole(1, 75)  # tokens: CLIP takes 77, with two of its own
DEPTH = whole(1, 12)
CONTEXT = "number of learned tokens before the class name, where CTX_INIT is empty"
INIT = "words that the learned tokens begin as, one for each; empty: random"


@dataclass(frozen=True)
class Method:
    """A method: its module here, its config node TRAINER.<node>, and the keys of that node."""

    module: str
    node: str = ""
    keys: dict[str, Key] = field(default_factory=dict)


METHODS = {
    "ZeroshotCLIP": Method("zsclip"),
    "CoOp": Method(
        "coop",
        "COOP",
        {
            "N_CTX": Key(16, CONTEXT, TOKENS),
            "CSC": Key(False, "context tokens of its own for each class"),
            "CTX_INIT": Key("", INIT),
            "PREC": PREC,
            "CLASS_TOKEN_POSITION": Key(
                "end",
                "where the class name is among the context tokens",
                one_of("end", "middle", "front"),
            ),
        },
    ),
    "CoCoOp": Method(
        "cocoop",
        "COCOOP",
        {"N_CTX": Key(16, CONTEXT, TOKENS), "CTX_INIT": Key("", INIT), "PREC": PREC},
    ),
    "MaPLe": Method(
        "maple",
        "MAPLE",
        {
            "N_CTX": Key(
                2,
                "number of learned tokens in each of the layers; above 4: random at first",
                TOKENS,
            ),
            "CTX_INIT": Key(
                "a photo of a",
                "words before the class name, the first N_CTX of which are learned; empty: random",
            ),
            "PREC": PREC,
            "PROMPT_DEPTH": Key(
                9, "number of layers, of text and image encoder, that have learned tokens", DEPTH
            ),
        },
    ),
}

_lock = threading.Lock()  # of `add_to_registry`, which any thread may call first

for _method in METHODS.values():
    for _name, _key in _method.keys.items():
        config.add(f"TRAINER.{_method.node}.{_name}", _key)


def __getattr__(name: str) -> Any:
    """The trainer class of a method, imported at its first use."""
    if name not in METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{METHODS[name].module}"), name)


def add_to_registry() -> None:
    """Register the trainers in the engine's registry, except names that are registered already."""
    from dassl.engine import TRAINER_REGISTRY

    with _lock:
        for name in METHODS:
            if name not in TRAINER_REGISTRY.registered_names():
                TRAINER_REGISTRY.register(__getattr__(name))


def npt_class_of(trainer: type) -> type | None:
    """The class in `npt.trainers.npt` that adds NPT to `trainer`; None if there is none."""
    if not trainer.__module__.startswith(f"{__name__}."):
        return None
    from npt.trainers import npt as with_npt

    cls = getattr(with_npt, f"{trainer.__name__}NPT", None)
    return cls if cls is not None and trainer in cls.__mro__ else None
