"""The settings of a run: those that are no defaults, and the command that made it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from npt.flags import FLAGS
from npt.identity import UNSET, flat, plain

LOG = "log.txt"
ARGUMENTS = re.compile(r"^\*\* Arguments \*\*\n\*+\n(.*?)\n\*+\n\*\* Config \*\*$", re.M | re.S)
LONGEST = 1 << 16  # characters of a log: the arguments open it


def changed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each key whose value is not the default: key, value, default."""
    from dassl.config import get_cfg_default

    defaults = flat(plain(get_cfg_default()))
    return [
        (key, _shown(value), _shown(defaults.get(key, UNSET)))
        for key, value in sorted(flat(config).items())
        if value != defaults.get(key, UNSET)
    ]


def whole(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every key with its value."""
    return [(key, _shown(value)) for key, value in sorted(flat(config).items())]


def _shown(value: Any) -> str:
    return '""' if value == "" else str(value)


def command(folder: Path) -> str:
    """The command of the run as its log has it; "" where it has none, or only a part of it."""
    try:
        with (folder / LOG).open(encoding="utf-8", errors="replace") as file:
            found = ARGUMENTS.search(file.read(LONGEST))
    except OSError:
        return ""
    lines = found[1].splitlines() if found else []
    given = dict(line.partition(": ")[::2] for line in lines)
    if not given.get("trainer") and not given.get("config_file"):
        return ""  # of a config that a program made
    return shlex.join(["python", "train.py", *_words(given)])


def _words(given: Mapping[str, str]) -> Iterator[str]:
    """The words of a command line with these arguments, as a log has them."""
    for flag, how in FLAGS.items():
        text = given.get(flag[2:].replace("-", "_"), "")
        if text in ("", "None", "False") or (flag == "--seed" and text == str(how["default"])):
            continue
        yield flag
        if how.get("nargs"):
            yield from _listed(text)
        elif how.get("action") != "store_true":
            yield text
    yield from _listed(given.get("opts", ""))


def _listed(text: str) -> list[str]:
    try:
        return [str(x) for x in ast.literal_eval(text or "[]")]
    except (SyntaxError, TypeError, ValueError):
        return []
