"""Reads a checkpoint that holds more than tensors and plain values, and runs nothing in it.

Checkpoints written by Dassl pickle a live scheduler beside the weights, so torch's
`weights_only=True` refuses the whole file. Here every class or function that a file names is
replaced by an inert placeholder, except the few that rebuild tensors; nothing is imported.
"""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from typing import Any

import torch

__all__ = ["Placeholder", "salvage"]


class Placeholder:
    """Stands for an object of a class that is not rebuilt; `state` is what the file said of it."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        pass  # whatever the class was built with

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass  # an entry of a dict subclass

    def append(self, value: Any) -> None:
        pass  # an entry of a list subclass

    def extend(self, values: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.origin}, not rebuilt>"


# What rebuilds tensors and ordinary containers, and has no other effect.
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    replaced: set[str]  # set on the subclass that `salvage` makes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        origin = f"{module}.{name}"
        self.replaced.add(origin)
        return type("Placeholder", (Placeholder,), {"origin": origin})


def salvage(fpath: str) -> tuple[Any, list[str]]:
    """Load `fpath` on the CPU; also the names of the classes that became placeholders."""
    if zipfile.is_zipfile(fpath):
        with zipfile.ZipFile(fpath) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(f'"{fpath}" is a TorchScript archive, not a checkpoint')
    replaced: set[str] = set()
    unpickler = type("Unpickler", (_Unpickler,), {"replaced": replaced})
    module = types.ModuleType("restricted_pickle")
    module.Unpickler = unpickler
    module.load = lambda f, **kwargs: unpickler(f, **kwargs).load()
    # weights_only=True cannot be combined with an unpickler; this one allows less than it does.
    content = torch.load(fpath, map_location="cpu", pickle_module=module, weights_only=False)
    return content, sorted(replaced)
