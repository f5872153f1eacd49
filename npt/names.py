"""The trainer's name in a config: as it was asked for, and as the host's code reads it.

Code of a host compares TRAINER.NAME with the names that it knows: MMRL chooses settings by it, the
data sets of PromptKD their classes. So the name `<X>NPT`, where X is a trainer of the host, is kept
as X in the node TRAINER, and the node remembers what was asked for. `trainer_name` tells it; logs,
records and printed configs have that name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from npt.errors import NPTError

SUFFIX = "NPT"
NODE = "NPT"  # TRAINER.NPT holds our keys
# Attributes beside those of yacs, such as __immutable__:
ASKED = "__asked__"  # the name that was asked for
TAKEN = "__taken__"  # whether an NPT trainer has taken the config
# Names that configs of this process asked for and no NPT trainer has taken so far, by host trainer.
_waiting: dict[str, str] = {}

# The host's trainer that a name wraps, or None; `npt.host.registry` knows the host's trainers.
_host_trainer: list[Callable[[str], str | None]] = [lambda name: None]


def tell_host_trainers(find: Callable[[str], str | None]) -> None:
    """Let `find` say which host trainer X is wrapped by a name `<X>NPT`; None if there is none."""
    _host_trainer[:] = [find]


class TrainerNode(CfgNode):
    """The node TRAINER of a config: NAME is that of the host's trainer, also if NPT wraps it.

    The node TRAINER.NPT cannot be removed from it: tools such as Dassl's `clean_cfg` remove the
    nodes of all other trainers, but NPT is none of these.
    """

    @property
    def asked(self) -> str:
        """The name that was asked for if NPT wraps the host's trainer NAME, else ""."""
        return self.__dict__.get(ASKED, "")

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "NAME":
            base = _host_trainer[0](value) if isinstance(value, str) else None
            self._ask(value if base else "", base)
            value = base or value
        super().__setitem__(key, value)

    def _ask(self, name: str, base: str | None) -> None:
        self.__dict__[ASKED], self.__dict__[TAKEN] = name, False
        if base:
            _waiting[base] = name

    def find_base(self) -> None:
        """Look again for the host's trainer that NAME wraps: it may be registered by now.

        For the name NPT it is the trainer TRAINER.NPT.BASE.
        """
        name = self.get("NAME")
        if name == SUFFIX:
            base = _host_trainer[0](str(self.get(NODE, {}).get("BASE")) + SUFFIX)
            if base:
                super().__setitem__("NAME", base)
                self._ask(name, base)
        elif not self.asked:
            self["NAME"] = name

    def shown(self) -> CfgNode:
        """A plain node with the name that was asked for."""
        node = CfgNode()
        dict.update(node, self)
        if self.asked:
            node["NAME"] = self.asked
        return node

    def __str__(self) -> str:
        return str(self.shown())

    # ---- removal

    def pop(self, key: str, *default: Any) -> Any:
        return self[key] if self._keeps(key) else super().pop(key, *default)

    def __delitem__(self, key: str) -> None:
        if not self._keeps(key):
            super().__delitem__(key)

    def _keeps(self, key: str) -> bool:
        wrapped = self.asked and key == str(self.get("NAME")).upper()
        return (key == NODE or bool(wrapped)) and key in self

    # ---- copies

    def __reduce__(self) -> Any:
        """Copies and pickles restore the name that was asked for after the items, not before."""
        return _rebuilt, (dict(self), self.__dict__)

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """As in yacs, except that nodes inside are plain ones."""
        return value if isinstance(value, CfgNode) else CfgNode._decode_cfg_value(value)


def _rebuilt(items: dict[str, Any], state: dict[str, Any]) -> TrainerNode:
    node = TrainerNode()
    dict.update(node, items)
    node.__dict__.update(state)
    return node


def trainer_name(cfg: Any) -> str:
    """The trainer that was asked for: `<X>NPT` where host code reads the name X."""
    node = cfg.get("TRAINER", {})
    asked = node.asked if isinstance(node, TrainerNode) else ""
    return asked or str(node.get("NAME") or "")


def as_asked(cfg: CfgNode) -> CfgNode:
    """The config for a record: TRAINER.NAME is `trainer_name`. Its nodes are those of `cfg`."""
    node = cfg.get("TRAINER")
    if not isinstance(node, TrainerNode) or not node.asked:
        return cfg
    shown = CfgNode()
    dict.update(shown, cfg)
    dict.__setitem__(shown, "TRAINER", node.shown())
    return shown


def for_host(cfg: Any) -> Any:
    """The config that host code reads: `cfg`, or a copy if the host's name is known only now.

    NPT trainers call it, for `check_taken`.
    """
    node = cfg.get("TRAINER") if isinstance(cfg, CfgNode) else None
    if isinstance(node, CfgNode) and str(node.get("NAME")).endswith(SUFFIX):
        cfg = cfg.clone()
        node = cfg.TRAINER
        adopt(node)
    if isinstance(node, TrainerNode):
        node.__dict__[TAKEN] = True
        _waiting.pop(node.get("NAME"), None)
    return cfg


def check_taken(cfg: Any) -> None:
    """NPTError if the config asks for `<X>NPT`, but the host has built its own trainer X.

    Also if the command line asks for it and the config has only the name X, since host code may
    write the name that it reads into another config. A warning if only another config asked.
    """
    node = cfg.get("TRAINER", {})
    name = str(node.get("NAME"))
    own = node.asked if isinstance(node, TrainerNode) and not node.__dict__.get(TAKEN) else ""
    asked = own or _waiting.get(name, "")
    if not asked:
        return
    why = (
        f"The trainer {asked} is asked for, but {name} is built, without NPT: build it with "
        f"dassl.engine.build_trainer(cfg) and the name {asked}; if this repository writes "
        f"TRAINER.NAME into a config again, add TRAINER.NAME {asked} after that."
    )
    if own or any(word in (asked, f"--trainer={asked}") for word in sys.argv):
        raise NPTError(why)
    warnings.warn(why, stacklevel=3)


def adopt(node: Any) -> None:
    """Make a plain node TRAINER a TrainerNode, in place, and look for the trainer it wraps."""
    if type(node) is CfgNode:
        object.__setattr__(node, "__class__", TrainerNode)  # yacs' own setter takes keys only
    if isinstance(node, TrainerNode) and "NAME" in node:
        node.find_base()
