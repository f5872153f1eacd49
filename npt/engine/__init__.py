"""Makes `import dassl` work: with the installed Dassl, or with the engine embedded in npt.

The environment variable NPT_ENGINE selects the engine. Unset: the installed Dassl, or the embedded
engine if there is none. `embedded`: always the embedded engine. `installed`: always Dassl, an error
if it is not installed.

The selection is made at the first `import dassl` after `import npt`, with the module search path
at that time. So a Dassl in the folder of a script is found, however the script was started. A
`dassl` that was imported before npt is kept.
"""

from __future__ import annotations

import ast
import functools
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

EMBEDDED = Path(__file__).resolve().parent / "embedded"  # the folder that contains our `dassl`
VARIABLE = "NPT_ENGINE"
HOW_TO_INSTALL = (
    "git clone https://github.com/KaiyangZhou/Dassl.pytorch and put that folder on PYTHONPATH, or "
    "pip install numpy first and then pip install --no-build-isolation "
    "git+https://github.com/KaiyangZhou/Dassl.pytorch"
)
USE_EMBEDDED = f"set {VARIABLE}=embedded to use the engine embedded in npt"


class Engine(NamedTuple):
    """The `dassl` in use: "embedded" or "installed", its version, its folder."""

    name: str
    version: str
    path: str


def when_imported(callback: Callable[[], None]) -> None:
    """Select the engine at the first `import dassl`, and call `callback` right after that import.

    If dassl is already imported, do both now.
    """
    if "dassl" in sys.modules:
        activate()
        callback()
    else:
        sys.meta_path.insert(0, _Finder(callback))


class _Finder(MetaPathFinder):
    """Selects the engine, then finds `dassl` with the other finders of `sys.meta_path`."""

    def __init__(self, callback: Callable[[], None]):
        self.callback = callback
        self.searching = False  # True while the other finders search for dassl

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "dassl" or self.searching:
            return None
        self.searching = True
        try:
            activate()
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _CallbackLoader(spec.loader, self.callback)
        return spec


class _CallbackLoader(Loader):
    """Loads a module with its own loader, then calls `callback`."""

    def __init__(self, loader: Loader, callback: Callable[[], None]):
        self.loader, self.callback = loader, callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.callback()


def activate() -> None:
    """Select the `dassl` that an import finds; repeated calls change nothing.

    The embedded engine is selected by its folder on sys.path, because spawned processes inherit
    sys.path: they find the same dassl even if they import it before npt.

    Raises NPTError if NPT_ENGINE has an unknown value or names an engine that cannot be used.
    """
    choice = os.environ.get(VARIABLE, "").strip()
    if choice not in ("", "embedded", "installed"):
        raise NPTError(
            f'The environment variable {VARIABLE} is "{choice}": set it to embedded or installed, '
            "or unset it"
        )
    if "dassl" in sys.modules:
        _check_imported(sys.modules["dassl"], choice)
        return
    if choice == "embedded":
        _add_to_path(first=True)
        return
    installed = _find_installed()
    if installed is not None:
        _remove_from_path()
        _warn_if_broken(installed)
    elif choice == "installed":
        raise NPTError(
            f"{VARIABLE} is installed, but no Dassl is installed: {HOW_TO_INSTALL}; "
            f"or {USE_EMBEDDED}"
        )
    else:
        _add_to_path(first=False)


def describe() -> Engine:
    """The engine in use. Imports dassl if it is not imported yet."""
    activate()
    dassl = importlib.import_module("dassl")
    folder = _folder(dassl)
    name = "embedded" if folder.parent == EMBEDDED else "installed"
    return Engine(name, str(getattr(dassl, "__version__", "unknown")), str(folder))


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


def _check_imported(dassl: ModuleType, choice: str) -> None:
    """Raise NPTError if the dassl that is already imported is not the chosen engine."""
    folder = _folder(dassl)
    is_embedded = folder.parent == EMBEDDED
    if choice == "embedded" and not is_embedded:
        raise NPTError(
            f'{VARIABLE} is embedded, but "{folder}" was imported as dassl before npt: put '
            f"`import npt` before the first import of dassl, or unset {VARIABLE}"
        )
    if choice == "installed" and is_embedded:
        raise NPTError(
            f"{VARIABLE} is installed, but the engine embedded in npt was already imported as "
            f"dassl: set {VARIABLE} before Python starts"
        )
    if not is_embedded:
        _warn_if_broken(folder)


def _folder(module: ModuleType) -> Path:
    """The folder of an imported package; the current one for a mock module without a path."""
    return Path(next(iter(getattr(module, "__path__", [])), "")).resolve()


def _find_installed() -> Path | None:
    """The folder of the first `dassl` on the search path that is not the embedded one.

    A folder named dassl without an `__init__.py` does not count.
    """
    path = sys.path
    try:
        sys.path = [entry for entry in path if not _is_embedded(entry)]
        importlib.invalidate_caches()
        spec = importlib.util.find_spec("dassl")
    finally:
        sys.path = path
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def _is_embedded(entry: str) -> bool:
    return Path(entry).resolve() == EMBEDDED


def _remove_from_path() -> None:
    sys.path[:] = [entry for entry in sys.path if not _is_embedded(entry)]


def _add_to_path(first: bool) -> None:
    _remove_from_path()
    sys.path.insert(0 if first else len(sys.path), str(EMBEDDED))
    importlib.invalidate_caches()


@functools.cache  # warn once for each folder
def _warn_if_broken(folder: Path) -> None:
    broken = broken_on_this_torch(folder)
    if broken:
        warnings.warn(
            f'The {broken} of the Dassl in "{folder}" do not work with the installed torch: '
            f"{USE_EMBEDDED}.",
            stacklevel=4,
        )
