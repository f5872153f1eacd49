"""Reads a checkpoint that contains arbitrary pickled objects, without executing code from it.

Checkpoints of Dassl contain a pickled scheduler, so torch.load with `weights_only=True` rejects
them. Here every class or function that a file names is replaced by an inert placeholder, except the
few functions that rebuild tensors. Nothing is imported.
"""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Placeholder", "salvage"]


class Placeholder:
    """Replaces an object of a class that is not rebuilt; `state` is the object's pickled state."""

    origin = ""  # the name of that class
    state: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        pass  # the arguments of the original class are ignored

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


# Functions and classes that rebuild tensors and plain containers, and have no other effect.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    replaced: set[str]  # set on the subclass in `salvage`

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        origin = f"{module}.{name}"
        self.replaced.add(origin)
        return type("Placeholder", (Placeholder,), {"origin": origin})


class _PickleModule(types.ModuleType):
    """A replacement of the module `pickle` for torch.load."""

    Unpickler: type[pickle.Unpickler]
    load: Callable[..., Any]


def salvage(fpath: str) -> tuple[Any, list[str]]:
    """Load `fpath` on the CPU. Returns the content, and the names of the replaced classes.

    ValueError if the file is a TorchScript archive.
    """
    if zipfile.is_zipfile(fpath):
        with zipfile.ZipFile(fpath) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(f'"{fpath}" is a TorchScript archive, not a checkpoint')
    replaced: set[str] = set()
    unpickler = type("Unpickler", (_Unpickler,), {"replaced": replaced})
    module = _PickleModule("restricted_pickle")
    module.Unpickler = unpickler
    module.load = lambda f, **kwargs: unpickler(f, **kwargs).load()
    # torch.load does not accept a pickle module together with weights_only=True. This unpickler is
    # stricter than the one of weights_only=True.
    content = torch.load(fpath, map_location="cpu", pickle_module=module, weights_only=False)
    return content, sorted(replaced)
