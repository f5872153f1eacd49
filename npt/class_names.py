"""Class names as CLIP reads them: their tokens, equal names, names that it cannot know.

A prompt is "<words> <class name>.", in lower case, with single spaces. So two classes may have one
prompt ("Crane" and "crane" of ImageNet): their texts are equal whatever is learned.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from npt.backbones.openai import openai_clip
from npt.errors import NPTError

SPECIAL = 49406  # the first id of the tokens that mark the start and the end of a text
SHOWN = 3  # pairs of equal names that a warning names


def readable(name: str) -> str:
    """A class name as it is written in a prompt."""
    return name.replace("_", " ")


def tokens_of(name: str) -> list[int]:
    """The token ids of a class name, without those of start and end."""
    return _tokenizer().encode(readable(name))


def _tokenizer() -> Any:
    return openai_clip().clip._tokenizer  # that of its `tokenize`


def check_names(names: Sequence[str]) -> None:
    """NPTError, naming it, for a class name that a prompt cannot hold as it is."""
    for name in names:
        if any(unicodedata.category(c) == "Cc" and not c.isspace() for c in name):
            raise NPTError(
                f"the class name {name!r} has a control character, which CLIP leaves out: rename "
                "the class"
            )
        found = tokens_of(name)
        if not found:
            raise NPTError(f"the class name {name!r} has nothing that CLIP reads: rename the class")
        if max(found) >= SPECIAL:
            raise NPTError(
                f"the class name {name!r} holds the text with which CLIP marks the start or the "
                "end of a prompt, and would be cut there: rename the class"
            )


# --------------------------------------------------------------------------- one prompt
def of_one_prompt(names: Sequence[str]) -> list[list[int]]:
    """The groups of labels whose prompts have the same tokens, each of two or more."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for label, name in enumerate(names):
        groups.setdefault(tuple(_tokenizer().encode(f"{readable(name)}.")), []).append(label)
    return [labels for labels in groups.values() if len(labels) > 1]


def warn_of_one_prompt(names: Sequence[str]) -> None:
    """Warn, by name, of classes that have the same prompt."""
    words = said_of_one_prompt(names)
    if words:
        warnings.warn(words, stacklevel=2)


def said_of_one_prompt(names: Sequence[str]) -> str:
    """What to say of classes that have the same prompt, by name; "" if there are none."""
    groups = of_one_prompt(names)
    if not groups:
        return ""
    shown = [" and ".join(f"{k} {names[k]!r}" for k in group) for group in groups[:SHOWN]]
    more = f", and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    return (
        f"Classes have the same prompt ({'; '.join(shown)}{more}): CLIP cannot tell them apart, "
        "the first of them gets their images, and L_LC leaves their pairs out. Give them different "
        "names, or make them one class"
    )


# --------------------------------------------------------------------------- unknown names
def _split_finely(name: str) -> bool:
    """Whether the tokens of a word are much shorter than those of words that CLIP has seen."""
    words = re.findall(r"[^\W\d_]{6,}", readable(name))
    return any(len(word) < 1.9 * len(_tokenizer().encode(word)) for word in words)


def _other_script(name: str) -> bool:
    """Whether all letters are of another script than Latin, such as Cyrillic or Chinese."""
    letters = [c for c in name if c.isalpha()]
    return bool(letters) and not any("LATIN" in unicodedata.name(c, "") for c in letters)


def _without_letters(name: str) -> bool:
    """Whether there are only signs; a picture (emoji) says something to CLIP."""
    return not any(c.isalnum() or unicodedata.category(c) == "So" for c in name)


NUMBERED = (  # words before the number of a class, an item or a file
    "class|cls|label|lbl|category|cat|id|type|folder|group|sample|item|object|obj|part|cluster|set|"
    "train|val|test|img|image|photo|pic|picture|dscn?|frame|scan|video|sku|no"
)

# What makes a name one that CLIP cannot know: how it is recognised, and in words. The rows are
# meant for codes and ids, not for models and variants ("A300B4", "2012 Audi R8", "707-320"), which
# CLIP has seen in captions.
DOUBTS: tuple[tuple[Callable[[str], Any], str], ...] = (
    (re.compile(r"(?<![a-z0-9])[nv]\d{8}(?!\d)", re.I).search, "an id of WordNet"),
    (re.compile(r"/?m[./][0-9a-z_]{4,}", re.I).fullmatch, "an id of Freebase"),
    (re.compile(r"\W*\d+\W*|\d{4,}[\W_]\d+").fullmatch, "a number"),
    (re.compile(r"0\d*[\s._-].*|\d+[._]\s*[^\W\d].*").fullmatch, "a number before the name"),
    (
        re.compile(r"(?=.*\d)[0-9a-f]{8,}|0x[0-9a-f]+|[0-9a-f-]{36}", re.I).fullmatch,
        "a checksum or an id",
    ),
    (re.compile(rf"({NUMBERED})([\W_]*\d+|[\W_]+[a-z])", re.I).fullmatch, "a number of a class"),
    (re.compile(r"[a-z]_?\d{1,2}", re.I).fullmatch, "a letter and a number"),  # not C-47, A310
    (
        re.compile(r"[a-z]+[\W_]*(0\d{2,}|\d{5,})|.*\d{8}.*", re.I).fullmatch,
        "a number of a product or a file",
    ),
    (_other_script, "not in Latin letters, and CLIP learned from English"),
    (re.compile(r"[\W_]*[^\W\d_]{1,2}[\W_]*").fullmatch, "an abbreviation of one or two letters"),
    (_without_letters, "without letters"),
    (re.compile(r"(new|untitled) folder.*|unknown|other|misc|unsorted|tmp|temp", re.I).fullmatch,
     "not the name of a thing"),
    (_split_finely, "a word that CLIP hardly knows"),
)  # fmt: skip


def doubt(name: str) -> str:
    """Why CLIP cannot know what a class name means, in words; "" where nothing speaks for that."""
    return next((words for recognised, words in DOUBTS if recognised(name.strip())), "")
