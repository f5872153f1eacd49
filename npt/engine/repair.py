"""What of an installed Dassl does not work with the installed torch, and its repair.

Dassl 0.6, and forks of it that hosts bring along, derive their warm-up from torch's LRScheduler:
they pass `verbose` to it, which current torch does not take; and their state holds another
scheduler, the successor, which torch.load rejects and which a resumed run steps in vain, as it
belongs to the optimizer of the first run. While Dassl's module is imported, torch gives it a base
class without these faults. No code of Dassl is changed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

NAMES = ("LRScheduler", "_LRScheduler")  # of the same class; old torch has only the second
MODULE = "dassl.optim.lr_scheduler"


def import_schedulers() -> None:
    """Import Dassl's schedulers with a base class that works."""
    with _base_replaced():
        importlib.import_module(MODULE)


@contextmanager
def _base_replaced() -> Iterator[None]:
    from torch.optim import lr_scheduler

    before = {name: getattr(lr_scheduler, name) for name in NAMES if hasattr(lr_scheduler, name)}
    base = _tolerant(next(iter(before.values())))
    try:
        for name in before:
            setattr(lr_scheduler, name, base)
        yield
    finally:
        for name, original in before.items():
            setattr(lr_scheduler, name, original)


def _tolerant(scheduler: Any) -> type:
    """A subclass of torch's LRScheduler for Dassl's warm-up schedulers."""

    class PlainScheduler(scheduler):
        """Ignores `verbose`; its state holds the state of a successor, not the successor."""

        def __init__(self, optimizer: Any, last_epoch: int = -1, verbose: Any = False):
            super().__init__(optimizer, last_epoch)

        def state_dict(self) -> dict[str, Any]:
            return {name: _state(value) for name, value in super().state_dict().items()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            rest = dict(state)
            for name, value in vars(self).items():
                if isinstance(value, scheduler) and name in rest:
                    value.load_state_dict(_state(rest.pop(name)))
            super().load_state_dict(rest)

    def _state(value: Any) -> Any:
        return value.state_dict() if isinstance(value, scheduler) else value

    return PlainScheduler


# --------------------------------------------------------------------------- what is broken
def broken_on_this_torch(folder: Path) -> str:
    """The part of the Dassl in `folder` that fails with the installed torch; "" if there is none.

    Two known faults of Dassl 0.6: its warm-up schedulers pass `verbose` to LRScheduler.__init__,
    which current torch does not accept; and its checkpoints contain a pickled scheduler, which
    torch.load rejects by default since 2.6.
    """
    schedulers = _parse(folder / "optim" / "lr_scheduler.py")
    if any(map(_passes_verbose, ast.walk(schedulers))) and not _scheduler_accepts_verbose():
        return "warm-up schedulers"
    loading = _parse(folder / "utils" / "torchtools.py")
    if any(map(_loads_by_default, ast.walk(loading))) and _load_rejects_objects():
        return "checkpoints"
    return ""


def _parse(file: Path) -> ast.Module:
    """The syntax tree of a file; an empty one if the file cannot be read or parsed."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _scheduler_accepts_verbose() -> bool:
    from torch.optim import lr_scheduler

    scheduler = getattr(lr_scheduler, "LRScheduler", lr_scheduler._LRScheduler)
    return "verbose" in inspect.signature(scheduler.__init__).parameters


def _loads_by_default(node: ast.AST) -> bool:
    """Whether this is a call of torch.load without `weights_only`."""
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and all(keyword.arg != "weights_only" for keyword in node.keywords)
    )


def _load_rejects_objects() -> bool:
    """Whether torch.load, by default, rejects objects other than tensors and plain values."""
    import torch

    file = io.BytesIO()
    torch.save(Fraction(1), file)
    file.seek(0)
    try:
        with warnings.catch_warnings():  # torch 2.4 and 2.5 announce the change
            warnings.simplefilter("ignore")
            torch.load(file)
    except pickle.UnpicklingError:
        return True
    return False


def _passes_verbose(node: ast.AST) -> bool:
    """Whether this is a direct subclass of torch's LRScheduler that passes `verbose` to it."""
    if not isinstance(node, ast.ClassDef):
        return False
    bases = {getattr(base, "attr", getattr(base, "id", "")) for base in node.bases}
    if not bases & {"LRScheduler", "_LRScheduler"}:
        return False
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "__init__":
            values = [*call.args, *(keyword.value for keyword in call.keywords)]
            if any(isinstance(value, ast.Name) and value.id == "verbose" for value in values):
                return True
    return False
