"""The yacs keys of NPT and of the prompt learners, their defaults, and the checks on them.

The keys go into the engine's own default tree, in place, where any host finds them. yacs wants
the types of nodes to match exactly when files are merged, so the nodes stay plain `CfgNode`s and
only the root learns something: `freeze()` checks values, and merging takes `1` for `1.0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from yacs.config import CfgNode

from npt.errors import NPTError
from npt.imbalance import ORDERS
from npt.losses import REDUCTIONS

DEFAULTS: dict[str, dict[str, Any]] = {
    "TRAINER.NPT": {
        "W1": 0.3,  # weight of L_LC
        "W2": 0.8,  # weight of L_MI
        "E_W": 1.0,  # squared length of text features
        "E_H": 1.0,  # squared length of image features
        "REDUCTION": "mean",  # how the sums of Eqs. 5 and 6 are taken: see npt.losses
        "BASE": "",  # the trainer that the trainer `NPT` wraps
    },
    "TRAINER.COOP": {
        "N_CTX": 16,
        "CSC": False,  # a context for each class
        "CTX_INIT": "",
        "PREC": "fp16",
        "CLASS_TOKEN_POSITION": "end",
    },
    "TRAINER.COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
    "TRAINER.MAPLE": {
        "N_CTX": 2,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH": 9,
    },
    "MODEL": {
        "CLASS_CHUNK": 0,  # classes a training step takes at a time; 0: as many as memory allows
        "PLAIN_ENCODERS": False,  # the usual 77-token computation, to compare with
        "ACCELERATE": False,  # a host's own text encoder computed the fast way: npt.accelerate
    },
    "DATASET": {
        "SUBSAMPLE_CLASSES": "all",
        "IMBALANCE_RATIO": 1.0,  # tau: images of the rarest class over those of the largest
        "IMBALANCE_ORDER": "label",  # which classes are the rare ones
    },
}

Check = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*allowed: str) -> Check:
    return (lambda value: value in allowed), "one of " + ", ".join(allowed)


_WEIGHT: Check = (lambda v: _number(v) and v >= 0, "a finite number, 0 or more")
_LENGTH: Check = (lambda v: _number(v) and v > 0, "a finite number above 0")
_COUNT: Check = (lambda v: type(v) is int and v >= 1, "a whole number, 1 or more")
CHECKS: dict[str, Check] = {
    "TRAINER.NPT.W1": _WEIGHT,
    "TRAINER.NPT.W2": _WEIGHT,
    "TRAINER.NPT.E_W": _LENGTH,
    "TRAINER.NPT.E_H": _LENGTH,
    "TRAINER.NPT.REDUCTION": _one_of(*REDUCTIONS),
    **{f"TRAINER.{node}.N_CTX": _COUNT for node in ("COOP", "COCOOP", "MAPLE")},
    "MODEL.CLASS_CHUNK": (lambda v: type(v) is int and v >= 0, "a whole number, 0 or more"),
    "DATASET.IMBALANCE_RATIO": (lambda v: _number(v) and 0 < v <= 1, "a number in (0, 1]"),
    "DATASET.IMBALANCE_ORDER": _one_of(*ORDERS),
    "DATASET.SUBSAMPLE_CLASSES": _one_of("all", "base", "new"),
}
# The others concern our own trainers, which check them: a host's may mean something else by them.
WHOEVER_TRAINS = [
    k for k in CHECKS if k.startswith(("TRAINER.NPT.", "MODEL.", "DATASET.IMBALANCE"))
]


def check(cfg: CfgNode, required: str = "", keys: Iterable[str] = CHECKS) -> None:
    """NPTError where a key holds what it must not, or one that begins with `required` is missing.

    Other missing keys are let pass: a host may have put a node of its own in the place of ours.
    """
    for key in keys:
        good, allowed = CHECKS[key]
        value = _find(cfg, key)
        if value is None:
            if required and key.startswith(required):
                raise NPTError(f"The config has no key {key}; set it to {allowed}.")
        elif not good(value):
            raise NPTError(f"{key} is {value!r}, but it must be {allowed}.")


def _find(cfg: CfgNode, key: str) -> Any:
    """The value at a dotted key, or None where the tree has no such key."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


class CheckedRoot(CfgNode):
    """A config root that checks itself when it is frozen, and reads `1` where a float stands."""

    def _immutable(self, is_immutable: bool) -> None:
        if is_immutable:
            check(self, keys=WHOEVER_TRAINS)
        super()._immutable(is_immutable)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        values = list(cfg_list)
        for place in range(1, len(values), 2):
            value = self._decode_cfg_value(values[place])
            if isinstance(_find(self, values[place - 1]), float) and type(value) is int:
                values[place] = float(value)
        super().merge_from_list(values)

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        super().merge_from_other_cfg(_with_floats(cfg_other, self))

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """As in yacs, except that nodes below the root become plain ones, as the tree has them."""
        return CfgNode._decode_cfg_value(value)


def _with_floats(node: CfgNode, like: CfgNode) -> CfgNode:
    """A copy of `node` with integers turned to floats where `like` holds floats."""
    copy = CfgNode()
    for key, value in node.items():
        model = like.get(key)
        if isinstance(value, CfgNode):
            value = _with_floats(value, model if isinstance(model, CfgNode) else CfgNode())
        elif isinstance(model, float) and type(value) is int:
            value = float(value)
        copy[key] = value
    return copy


def register() -> None:
    """Add the keys to the engine's default config; safe to repeat, and nothing is overwritten."""
    from dassl.config import defaults

    root = defaults._C
    if type(root) is CfgNode:
        object.__setattr__(root, "__class__", CheckedRoot)  # yacs' own setter takes keys only
    for path, values in DEFAULTS.items():
        node = root
        for part in path.split("."):
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        for key, value in values.items():
            node.setdefault(key, value)
