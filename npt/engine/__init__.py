"""Makes `import dassl` work: with the installed Dassl, or with the engine that npt carries.

The environment variable NPT_ENGINE chooses: unset, an installed Dassl wins; `embedded` takes
npt's own; `installed` insists on Dassl. The choice is made by the first `import dassl` after
`import npt`, from the module search path at that time, so that a script's own folder counts however
the script was started. A `dassl` that was imported before npt stays.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from npt.errors import NPTError

__all__ = ["EMBEDDED", "Engine", "activate", "broken_on_this_torch", "describe", "when_imported"]

EMBEDDED = Path(__file__).resolve().parent / "embedded"  # the folder that holds our `dassl`
VARIABLE = "NPT_ENGINE"
HOW_TO_GET_DASSL = (
    "git clone https://github.com/KaiyangZhou/Dassl.pytorch and put that folder on PYTHONPATH, or "
    "pip install numpy first and then pip install --no-build-isolation "
    "git+https://github.com/KaiyangZhou/Dassl.pytorch"
)
WAY_OUT = f"set {VARIABLE}=embedded to use the engine that npt carries"

_warned = False


class Engine(NamedTuple):
    """Which `dassl` is in use: "embedded" or "installed", its version, its folder."""

    name: str
    version: str
    path: str


def when_imported(join: Callable[[], None]) -> None:
    """Settle the engine at the first `import dassl`, and call `join` as soon as it is imported.

    Where dassl is imported already, both happen now.
    """
    if "dassl" in sys.modules:
        activate()
        join()
    else:
        sys.meta_path.insert(0, _Finder(join))


class _Finder(MetaPathFinder):
    """Finds `dassl` as all other finders do, after the engine was settled."""

    def __init__(self, join: Callable[[], None]):
        self.join = join
        self.asking = False  # whether the other finders are being asked

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "dassl" or self.asking:
            return None
        self.asking = True
        try:
            activate()
            spec = importlib.util.find_spec(name)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Joining(spec.loader, self.join)
        return spec


class _Joining(Loader):
    """Loads a module by its own loader, and calls `join` after that."""

    def __init__(self, loader: Loader, join: Callable[[], None]):
        self.loader, self.join = loader, join

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.join()


def activate() -> None:
    """Settle which `dassl` an import finds; calling it again changes nothing.

    NPTError where NPT_ENGINE asks for what cannot be had.
    """
    wish = os.environ.get(VARIABLE, "").strip()
    if wish not in ("", "embedded", "installed"):
        raise NPTError(
            f'The environment variable {VARIABLE} is "{wish}": set it to embedded or installed, '
            "or unset it"
        )
    if "dassl" in sys.modules:
        _keep_imported(wish)
        return
    if wish == "embedded":
        _put_on_path(first=True)
        return
    spec = _installed()
    if spec is not None:
        _take_off_path()
        _warn_if_broken(spec)
    elif wish == "installed":
        raise NPTError(
            f"{VARIABLE} is installed, but no Dassl is installed: {HOW_TO_GET_DASSL}; or {WAY_OUT}"
        )
    else:
        _put_on_path(first=False)


def describe() -> Engine:
    """The engine in use, imported if it was not yet."""
    activate()
    dassl = importlib.import_module("dassl")
    folder = _folder(dassl)
    name = "embedded" if folder.parent == EMBEDDED else "installed"
    return Engine(name, str(getattr(dassl, "__version__", "unknown")), str(folder))


def broken_on_this_torch(folder: Path) -> str:
    """What of the Dassl in `folder` cannot work on this torch; empty where all of it can.

    Its schedulers hand `verbose` to LRScheduler.__init__, which torch has dropped; its checkpoints
    pickle a live scheduler, which torch.load refuses unless told otherwise since 2.6.
    """
    schedulers = _parse(folder / "optim" / "lr_scheduler.py")
    if any(map(_hands_on_verbose, ast.walk(schedulers))) and not _scheduler_takes_verbose():
        return "warm-up schedulers"
    loading = _parse(folder / "utils" / "torchtools.py")
    if any(map(_loads_by_default, ast.walk(loading))) and _load_refuses_objects():
        return "checkpoints"
    return ""


def _parse(file: Path) -> ast.Module:
    """The syntax tree of a file; an empty one where it cannot be had."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _scheduler_takes_verbose() -> bool:
    from torch.optim import lr_scheduler

    scheduler = getattr(lr_scheduler, "LRScheduler", lr_scheduler._LRScheduler)
    return "verbose" in inspect.signature(scheduler.__init__).parameters


def _loads_by_default(node: ast.AST) -> bool:
    """Whether this is a call of torch.load that does not say what it may unpickle."""
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and all(keyword.arg != "weights_only" for keyword in node.keywords)
    )


def _load_refuses_objects() -> bool:
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


def _hands_on_verbose(node: ast.AST) -> bool:
    """Whether a class built directly on torch's LRScheduler hands its `verbose` to it."""
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


def _keep_imported(wish: str) -> None:
    folder = _folder(sys.modules["dassl"])
    ours = folder.parent == EMBEDDED
    if wish == "embedded" and not ours:
        raise NPTError(
            f'{VARIABLE} is embedded, but "{folder}" was imported as dassl before npt: put '
            f"`import npt` before the first import of dassl, or unset {VARIABLE}"
        )
    if wish == "installed" and ours:
        raise NPTError(
            f"{VARIABLE} is installed, but npt's own engine was imported as dassl already: set "
            f"{VARIABLE} before Python starts"
        )
    if not ours:
        _warn_if_broken(sys.modules["dassl"].__spec__)


def _folder(module: ModuleType) -> Path:
    """The folder of an imported package; empty for a module that somebody made by hand."""
    return Path(next(iter(getattr(module, "__path__", [])), "")).resolve()


def _installed() -> ModuleSpec | None:
    """Where a `dassl` other than ours would be imported from.

    A folder that merely has that name (no `__init__.py`) is none.
    """
    path = sys.path
    try:
        sys.path = [entry for entry in path if not _is_ours(entry)]
        importlib.invalidate_caches()
        spec = importlib.util.find_spec("dassl")
    finally:
        sys.path = path
    return spec if spec is not None and spec.origin is not None else None


def _is_ours(entry: str) -> bool:
    return Path(entry).resolve() == EMBEDDED


def _take_off_path() -> None:
    sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)]


def _put_on_path(first: bool) -> None:
    _take_off_path()
    sys.path.insert(0 if first else len(sys.path), str(EMBEDDED))
    importlib.invalidate_caches()


def _warn_if_broken(spec: ModuleSpec | None) -> None:
    global _warned
    if _warned or spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    broken = broken_on_this_torch(folder)
    if broken:
        _warned = True
        warnings.warn(
            f'The {broken} of the Dassl in "{folder}" do not work with the installed torch: '
            f"{WAY_OUT}.",
            stacklevel=4,
        )
