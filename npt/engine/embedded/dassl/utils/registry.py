"""A registry of classes or functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import UnknownName


class Registry:
    """`@REGISTRY.register()` or `REGISTRY.register(obj)` adds an object under its `__name__`."""

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register `obj`, or return a decorator if there is none.

        KeyError if the name is already registered, unless `force` is set to replace it.
        """
        if obj is not None:
            self._add(obj, force)
            return obj

        def decorator(target: Callable) -> Callable:
            self._add(target, force)
            return target

        return decorator

    def _add(self, obj: Any, force: bool) -> None:
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(
                f'"{name}" is already registered in "{self._name}": '
                "use another name or pass force=True"
            )
        self._objects[name] = obj

    def get(self, name: str) -> Any:
        """The object with this name. UnknownName (a KeyError) if it is not registered."""
        if name not in self._objects:
            known = ", ".join(sorted(self._objects)) or "nothing"
            raise UnknownName(
                f'"{name}" is not registered in "{self._name}", which contains: {known}'
            )
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._objects)

    def __contains__(self, name: str) -> bool:
        return name in self._objects
