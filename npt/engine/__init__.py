"""Makes `import dassl` work: with the installed Dassl, or with the engine embedded in npt.

The environment variable NPT_ENGINE selects the engine. Unset: the installed Dassl, or the embedded
engine if there is none. `embedded`: always the embedded engine. `installed`: always Dassl, an error
if it is not installed.

The selection is made at the first `import dassl` after `import npt`, with the module search path
at that time. So a Dassl in the folder of a script is found, however the script was started. A
`dassl` that was imported before npt is kept.

Some hosts bring a Dassl of their own, often a fork that only they know, in a folder beside their
program (`Dassl.pytorch/dassl`). If no Dassl is on the search path, that one is the installed one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from npt.engine.repair import broken_on_this_torch, import_schedulers
from npt.errors import NPTError

__all__ = ["EMBEDDED", "Engine", "activate", "broken_on_this_torch", "describe", "when_imported"]

EMBEDDED = Path(__file__).resolve().parent / "embedded"  # the folder that contains our `dassl`
VARIABLE = "NPT_ENGINE"
HOW_TO_INSTALL = (
    "git clone https://github.com/KaiyangZhou/Dassl.pytorch and put that folder on PYTHONPATH, or "
    "pip install numpy first and then pip install --no-build-isolation "
    "git+https://github.com/KaiyangZhou/Dassl.pytorch"
)
_repaired: set[Path] = set()  # folders of a Dassl whose schedulers this process has repaired
_beside: set[Path] = set()  # folders of a Dassl that was found beside a host's program
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


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` right after the import of a module of the engine; now, if it is imported."""
    if name in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _After(name, callback))


class _After(MetaPathFinder):
    """Finds one module of the engine where it is, and calls `callback` after it was executed."""

    def __init__(self, name: str, callback: Callable[[], None]):
        self.name, self.callback = name, callback

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self.callback)
        return spec


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
            _select(repairs=True)
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _EngineLoader(spec.loader, self.callback)
        return spec


class _CallingLoader(Loader):
    """Loads a module with its own loader, then calls `callback`."""

    def __init__(self, loader: Loader, callback: Callable[[], None]):
        self.loader, self.callback = loader, callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.execute(module)

    def execute(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.callback()


class _EngineLoader(_CallingLoader):
    """Loads dassl, repairs it where it needs that, then calls `callback`."""

    def execute(self, module: ModuleType) -> None:
        try:
            self._execute(module, self.loader)
        except ImportError as error:
            if (folder := _folder(module)) not in _beside:
                raise
            warnings.warn(
                f"The Dassl of the host, in {folder.parent}, cannot be imported ({error}), so the "
                "engine embedded in npt is used: install what it needs if the host needs it.",
                stacklevel=2,
            )
            self._execute(module, _embedded_instead(folder))

    def _execute(self, module: ModuleType, loader: Loader) -> None:
        loader.exec_module(module)
        folder = _folder(module)
        if folder.parent != EMBEDDED and broken_on_this_torch(folder):
            _repaired.add(folder)
            import_schedulers()
        self.callback()


def activate() -> None:
    """Select the `dassl` that an import finds; repeated calls change nothing.

    The embedded engine is selected by its folder on sys.path, because spawned processes inherit
    sys.path: they find the same dassl even if they import it before npt.

    Raises NPTError if NPT_ENGINE has an unknown value or names an engine that cannot be used, and
    if a host brings several engines.
    """
    _select(repairs=False)


def _select(repairs: bool) -> None:
    """`activate`; without a warning about a Dassl that does not work if that will be repaired."""
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
    installed = _find_installed() or _find_beside()
    if installed is not None:
        _remove_from_path()
        if not repairs:
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
    return _described(importlib.import_module("dassl"))


def imported() -> Engine | None:
    """The engine in use; None if dassl is not imported yet."""
    dassl = sys.modules.get("dassl")
    return None if dassl is None else _described(dassl)


def _described(dassl: ModuleType) -> Engine:
    folder = _folder(dassl)
    name = "embedded" if folder.parent == EMBEDDED else "installed"
    return Engine(name, str(getattr(dassl, "__version__", "unknown")), str(folder))


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


def _find_beside() -> Path | None:
    """The Dassl that the host brings along, whose folder is then appended to sys.path.

    It is looked for in folders whose names begin with `dassl`, beside the program that runs and, if
    that is not the top of a repository, beside its folder. NPTError if there are several.
    """
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    home = None if program is None else Path(program).resolve().parent
    if home is None or EMBEDDED.is_relative_to(home) or home.is_relative_to(EMBEDDED.parents[1]):
        return None  # interactive, or one of npt's own programs
    places = [home] if (home / ".git").exists() else [home, home.parent]
    for place in places:
        found = list(place.glob("[Dd][Aa][Ss][Ss][Ll]*/dassl/__init__.py"))
        if len(found) > 1:
            named = ", ".join(f'"{x.parents[1]}"' for x in sorted(found))
            raise NPTError(
                f"The host brings several engines ({named}): put the folder of the right one on "
                f"PYTHONPATH, or {USE_EMBEDDED}"
            )
        if found:
            folder = found[0].parents[1]
            print(f'dassl is the one of the host, in "{folder}"; {USE_EMBEDDED}', file=sys.stderr)
            sys.path.append(str(folder))
            importlib.invalidate_caches()
            _beside.add(found[0].parent)
            return found[0].parent
    return None


def _embedded_instead(folder: Path) -> Loader:
    """Take back the import of the Dassl in `folder`; returns the loader of the embedded engine."""
    for name in [name for name in sys.modules if name.startswith("dassl.")]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder.parent]
    _add_to_path(first=False)
    spec = PathFinder.find_spec("dassl", [str(EMBEDDED)])
    assert spec is not None and spec.loader is not None
    dassl = sys.modules["dassl"]
    dassl.__spec__, dassl.__loader__, dassl.__file__ = spec, spec.loader, spec.origin
    dassl.__path__ = list(spec.submodule_search_locations or [])
    return spec.loader


def _is_embedded(entry: str) -> bool:
    return Path(entry).resolve() == EMBEDDED


def _remove_from_path() -> None:
    sys.path[:] = [entry for entry in sys.path if not _is_embedded(entry)]


def _add_to_path(first: bool) -> None:
    _remove_from_path()
    sys.path.insert(0 if first else len(sys.path), str(EMBEDDED))
    importlib.invalidate_caches()


def fault(folder: Path) -> str:
    """`broken_on_this_torch`, unless this process has repaired it (`npt.engine.repair`)."""
    return "" if folder in _repaired else broken_on_this_torch(folder)


@functools.cache  # warn once for each folder
def _warn_if_broken(folder: Path) -> None:
    broken = fault(folder)
    if broken:
        warnings.warn(
            f'The {broken} of the Dassl in "{folder}" do not work with the installed torch: '
            f"{USE_EMBEDDED}.",
            stacklevel=4,
        )
