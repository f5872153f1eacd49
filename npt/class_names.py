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

from npt.encoders.openai import openai_clip
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


# What makes a name one that CLIP cannot know: how it is recognised, and in words. The rows are
# meant for codes and ids, not for models and variants ("A300B4", "2012 Audi R8", "707-320"), which
# CLIP has seen in captions.
DOUBTS: tuple[tuple[Callable[[str], Any], str], ...] = (
    (re.compile(r"[nv]\d{8}").fullmatch, "an id of WordNet"),
    (re.compile(r"\W*\d+\W*").fullmatch, "a number"),
    (re.compile(r"(?=.*\d)[0-9a-f]{8,}|[0-9a-f-]{36}", re.I).fullmatch, "a checksum or an id"),
    (
        re.compile(
            r"(class|cls|label|category|cat|id|type|folder|group|sample)[\s_.-]*\d+", re.I
        ).fullmatch,
        "a number of a class",
    ),
    (re.compile(r"[\W_]*[^\W\d_]{1,2}[\W_]*").fullmatch, "an abbreviation of one or two letters"),
    (re.compile(r"[\W_]+").fullmatch, "without letters"),
    (re.compile(r"(new|untitled) folder.*|unknown|other|misc|unsorted|tmp|temp", re.I).fullmatch,
     "not the name of a thing"),
    (_split_finely, "a word that CLIP hardly knows"),
)  # fmt: skip


def doubt(name: str) -> str:
    """Why CLIP cannot know what a class name means, in words; "" where nothing speaks for that."""
    return next((words for recognised, words in DOUBTS if recognised(name.strip())), "")
