"""Reading of yaml files that people write: configs and experiments.

yaml lets a node refer to another one, so a short file can stand for billions of values, and nodes
can nest until Python gives up. A config has no use for either, so both have a bound here.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from npt.errors import NPTError
from npt.text_file import read_text

BYTES = 100_000  # of a file
NODES = 10_000  # of a file, each counted as often as the file refers to it


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a yaml file; empty where the file is. `what` it should hold, for the error.

    NPTError where the file is no yaml, is too large, nests too deep, or names a key twice.
    """
    if path.stat().st_size > BYTES:
        raise NPTError(f"the file {path} is larger than {BYTES:,} bytes: it has no {what}")
    try:
        text = read_text(path)
    except ValueError as error:
        raise NPTError(f"the file {path} is not valid yaml: {error}") from error
    values = read_value(text, f"the file {path}")
    if values is not None and not isinstance(values, dict):
        raise NPTError(f"the file {path} has no {what} at its top level")
    return values or {}


def read_value(text: str, where: str) -> Any:
    """The value of a yaml text; None if it is empty. NPTError, naming `where`, as `read_yaml`."""
    return copy.deepcopy(_value(text, where))


@lru_cache(maxsize=256)  # the runs of an experiment share their few files
def _value(text: str, where: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, where)
        return loader.construct_document(root)
    except RecursionError as error:
        raise NPTError(f"{where} is nested too deep to be read") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # yaml's own error, or what its code for numbers, dates and !!bool raises for others
        raise NPTError(f"{where} is not valid yaml: {error}") from error


def _check(root: yaml.Node, where: str) -> None:
    """Raise NPTError where a mapping has a key twice, or where there are too many nodes."""
    waiting, count = [root], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count + len(waiting) > NODES:
            raise NPTError(
                f"{where} has more than {NODES:,} values, those that it refers to (*name) "
                "counted each time: write fewer"
            )
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                waiting += (key, value)
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen and key.value != "<<":
                        line = key.start_mark.line + 1
                        raise NPTError(
                            f"{where} has the key {key.value} twice, again in line {line}: "
                            "remove one"
                        )
                    seen.add(key.value)
