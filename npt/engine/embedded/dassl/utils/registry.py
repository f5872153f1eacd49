"""A table from names to classes or functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import UnknownName


class Registry:
    """`@REGISTRY.register()` or `REGISTRY.register(obj)` files an object under its `__name__`."""

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """File `obj`, or return a decorator that does.

        KeyError where the name is taken, unless `force` replaces it.
        """
        if obj is not None:
            self._file(obj, force)
            return obj

        def decorator(target: Callable) -> Callable:
            self._file(target, force)
            return target

        return decorator

    def _file(self, obj: Any, force: bool) -> None:
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(
                f'"{name}" is already registered in "{self._name}": '
                "give it another name or pass force=True"
            )
        self._objects[name] = obj

    def get(self, name: str) -> Any:
        """The object filed under `name`; KeyError naming all the others where there is none."""
        if name not in self._objects:
            known = ", ".join(sorted(self._objects)) or "nothing"
            raise UnknownName(f'"{name}" is not registered in "{self._name}", which has: {known}')
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """The names, in order of registration."""
        return list(self._objects)

    def __contains__(self, name: str) -> bool:
        return name in self._objects
