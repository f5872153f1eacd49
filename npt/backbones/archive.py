"""Reads the weights in a zip archive of torch.jit.save or torch.save without executing it.

torch.jit.load runs code of the archive, and some versions of torch.load call it. Here the archive's
pickle is read by an unpickler that knows no class and no function: whatever the pickle names
becomes a `Thing`, which only keeps its arguments and its state. Tensors are then made from the
things that describe tensors. Every member that is read has its checksum verified by zipfile.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAGIC = b"PK\x03\x04"  # the first bytes of these archives
DTYPES = {
    **{"torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32},
    **{"torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16},
    **{"torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32},
    **{"torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8},
    **{"torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool},
}
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETERS = tuple(f"torch._utils._rebuild_parameter{x}" for x in ("", "_with_state"))
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "ema")  # in this order
DICTIONARIES = ("dict", "collections.OrderedDict")
ORDERS = {b"little": "<", b"big": ">"}
DEEPEST, MOST = 100, 10_000  # modules within modules, and modules or classes; CLIP has 7 and 700
EXPANSION = 20  # the members have at most this many bytes, once decompressed, per byte of the file
SPARE = 1_000_000  # and these; the code in a small archive compresses well


class Thing:
    """What the archive builds with the class or function `origin`: its arguments and its state."""

    origin = ""
    args: tuple[Any, ...]
    items: dict[str | int, Any]  # if it is a dictionary
    state: Any

    def __new__(cls, *args: Any) -> Thing:
        self = object.__new__(cls)
        self.args, self.items, self.state = args, {}, None
        return self

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        # Weights have names. (To hash a key that is a deep tuple would overflow the stack.)
        if isinstance(key, (str, int)):
            self.items[key] = value


class Table(Thing):
    """A dictionary."""

    origin = "dict"


def _append_table(unpickler: Any) -> None:
    unpickler.append(Table())


# In Python, not in C: there, a few bytes can make the table of remembered objects fill the memory.
class _Unpickler(pickle._Unpickler):
    dispatch = {  # noqa: RUF012
        **{
            code: load
            for code, load in pickle._Unpickler.dispatch.items()
            if code not in (pickle.DICT + pickle.FROZENSET + pickle.ADDITEMS)  # they hash anything
        },
        pickle.EMPTY_DICT[0]: _append_table,
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.kinds: dict[str, type[Thing]] = {}

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{module}.{name}"
        if origin not in self.kinds:
            self.kinds[origin] = type("Thing", (Thing,), {"origin": origin})
        if len(self.kinds) > MOST:
            raise ValueError("it names too many classes")
        return self.kinds[origin]

    def persistent_load(self, pid: Any) -> Any:
        return pid  # ("storage", its class, key, device, number of elements)


class Archive:
    """An open archive. All methods raise an exception of any type if it is damaged."""

    def __init__(self, opened: zipfile.ZipFile, size: int):
        """size: of the file, in bytes"""
        names = opened.namelist()
        if len(set(names)) < len(names):
            raise ValueError("two of its members have the same name")
        roots = [name.partition("/")[0] for name in names if re.fullmatch("[^/]+/data.pkl", name)]
        if len(roots) != 1:
            raise ValueError("it has no data.pkl, or more than one")
        self.largest = SPARE + EXPANSION * size
        if sum(info.file_size for info in opened.infolist()) > self.largest:
            raise ValueError("its members are too large for this file")
        self.opened, self.names, self.root = opened, set(names), roots[0]
        self.storage = cache(self._storage)
        self.weights = cache(self._weights)

    def member(self, name: str) -> bytes:
        return self.opened.read(f"{self.root}/{name}")

    def content(self) -> dict[Any, Any]:
        """The state dict of the module in the archive, or the dictionary in it.

        Entries of a dictionary that are not tensors are left as they are.
        """
        return {key: self.tensor(x) if is_tensor(x) else x for key, x in self.entries().items()}

    def shapes(self) -> dict[Any, tuple[int, ...]]:
        """The shapes of the tensors of `content`, whose numbers are not read."""
        return {key: shape(x) for key, x in self.entries().items() if is_tensor(x)}

    def entries(self) -> dict[Any, Any]:
        """As `content`, with a thing for each tensor."""
        root = _Unpickler(io.BytesIO(self.member("data.pkl"))).load()
        origin = getattr(root, "origin", type(root).__name__)
        if origin.startswith("__torch__."):
            return self.flattened(root)
        if origin not in DICTIONARIES:
            kind = "Tensor" if is_tensor(root) else origin
            raise ValueError(f"it contains a {kind}, not a state dict")
        items = unwrapped(root.items, lambda x: x.items if _is_dictionary(x) else None)
        return {key: value for key, value in items.items() if isinstance(key, str)}

    def flattened(self, root: Thing) -> dict[str | int, Any]:
        """The tensors of a tree of modules, by the names that they have in its state dict."""
        found: dict[str | int, Any] = {}
        waiting = [("", root)]
        for _ in range(MOST):
            if not waiting:
                return found
            prefix, module = waiting.pop()
            weights = self.weights(module.origin)
            if not isinstance(module.state, Table):
                raise ValueError("it is restored by its own code, which is not executed")
            for name, value in module.state.items.items():
                if is_tensor(value) and (weights is None or name in weights):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, Thing) and value.origin.startswith("__torch__."):
                    waiting.append((f"{prefix}{name}.", value))
            if prefix.count(".") > DEEPEST:
                break
        raise ValueError("its modules are nested too deep, or too many")

    def _weights(self, origin: str) -> set[str] | None:
        """The names of a class's parameters and buffers; None, for all, in archives of old torch.

        They are read from the text of the class, because a module may have other tensors.
        """
        *module, name = origin.split(".")
        text = self.member(f"code/{'/'.join(module)}.py").decode()
        lists = r"  __parameters__ = \[(.*)\]\n(?:  __buffers__ = \[(.*)\]\n)?"
        found = re.search(rf"^class {re.escape(name)}\(Module\):\n{lists}", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"{origin} is not a module")
        parameters, buffers = found.groups()
        return None if buffers is None else set(re.findall('"(.*?)"', parameters + buffers))

    def tensor(self, thing: Thing) -> Tensor:
        """The tensor that a thing describes."""
        (_, kind, key, _, number), offset, size, stride, *_ = described(thing)
        numbers = (number, offset, *size, *stride)
        if not isinstance(key, str) or not all(isinstance(n, int) for n in numbers):
            raise ValueError("a tensor has a size that is no number")
        if math.prod(size) > self.largest:
            raise ValueError("a tensor is too large for this file")
        storage = self.storage(key, DTYPES[kind.origin])
        if len(storage) != number:
            raise ValueError(f"data/{key} has another length than its tensor")
        return storage.as_strided(size, stride, offset)

    def _storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """All numbers (n,) of a storage."""
        written = self.member("byteorder") if f"{self.root}/byteorder" in self.names else b"little"
        kind = f"i{dtype.itemsize}"
        data = np.frombuffer(bytearray(self.member(f"data/{key}")), ORDERS[written] + kind)
        return torch.from_numpy(data.astype(f"={kind}", copy=False)).view(dtype)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Thing) and value.origin in (TENSOR, *PARAMETERS)


def _is_dictionary(value: Any) -> bool:
    return getattr(value, "origin", "") in DICTIONARIES


def unwrapped(content: Mapping[Any, Any], inside: Callable[[Any], Any]) -> Mapping[Any, Any]:
    """The state dict in what a training has saved, which may have other entries beside it.

    inside: gives the mapping that an entry is; None for any other entry
    """
    for _ in range(len(WRAPPERS)):
        found = (inside(content[name]) for name in WRAPPERS if name in content)
        inner = next((x for x in found if x is not None), None)
        if inner is None:
            break
        content = inner
    return content


def described(thing: Thing) -> tuple[Any, ...]:
    """The arguments of a tensor's thing: (storage, offset, size, stride, ...)."""
    return thing.args[0].args if thing.origin in PARAMETERS else thing.args


def shape(thing: Thing) -> tuple[int, ...]:
    return tuple(map(int, described(thing)[2]))


def is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_archive(path: str) -> dict[str, Any]:
    """The state dict in the archive. Raises exceptions of many types if it is damaged."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as opened:
        return Archive(opened, file.seek(0, io.SEEK_END)).content()


def read_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The shapes of what `read_archive` returns; it raises the same."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as opened:
        return Archive(opened, file.seek(0, io.SEEK_END)).shapes()
