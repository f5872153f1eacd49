"""Modules that are imported when they are first used.

torch takes seconds to import, pandas and matplotlib half a second each. Modules that are read by
commands which compute nothing (names of config keys, labels of tables) name them so:

    if TYPE_CHECKING:
        import torch
    else:
        torch = later("torch")
"""

from __future__ import annotations

import importlib
from typing import Any


class later:
    """Stands for the module of that name: the first attribute that is asked for imports it."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
