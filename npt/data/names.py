"""What CLIP reads of the classes of a data set: prompts, tokens, the nearest class, doubts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from npt.class_names import doubt, said_of_one_prompt, tokens_of
from npt.datasets.base import PARTS

if TYPE_CHECKING:
    from npt.trainers.prompts import Classes

LISTS = dict(zip(PARTS, ("train_x", "val", "test"), strict=True))  # part -> attribute of a data set


@dataclass(frozen=True)
class Names:
    """The classes of a data set.

    images: part -> images of each class
    nearest: of each class the label of the class with the most similar text, and their cosine;
        empty without a CLIP
    """

    classnames: list[str]
    prompts: list[str]
    tokens: list[int]  # with those of start and end, of which CLIP takes 77
    images: dict[str, list[int]]
    nearest: list[tuple[int, float]]


def describe(dataset: Any, backbone: str = "") -> Names:
    """The names of a data set; with a `backbone`, also the nearest class of each in that CLIP.

    NPTError if a name cannot be in a prompt, or the CLIP cannot be loaded.
    """
    from npt.trainers.prompts import Classes, tokenize
    from npt.trainers.zsclip import hand_written

    classes = Classes.of(dataset)
    prompts = [hand_written(classes, name) for name in classes.names]
    tokenize(prompts, classes.names)  # raises where a prompt does not fit
    images = {}
    for part, attribute in LISTS.items():
        found = Counter(item.label for item in getattr(dataset, attribute) or ())
        images[part] = [found[label] for label in range(len(classes.names))]
    tokens = [2 + len(tokens_of(prompt)) for prompt in prompts]
    nearest = _nearest(classes, backbone) if backbone and len(prompts) > 1 else []
    return Names(classes.names, prompts, tokens, images, nearest)


def _nearest(classes: Classes, backbone: str) -> list[tuple[int, float]]:
    import torch

    from npt.trainers.zsclip import frozen_text_features

    text = frozen_text_features(backbone, classes, torch.device("cpu"))
    cosines, labels = (text @ text.t()).fill_diagonal_(-2).max(1)
    return list(zip(labels.tolist(), cosines.tolist(), strict=True))


def table(names: Names, edge: int | None) -> str:
    """A row for each class; the middle ones are left out if there are more than 2 `edge`."""
    rows = []
    for label, name in enumerate(names.classnames):
        row = [str(label), name, names.prompts[label], str(names.tokens[label])]
        row += [f"{of_part[label]:,}" for of_part in names.images.values()]
        if names.nearest:
            other, cosine = names.nearest[label]
            row.append(f"{names.classnames[other]} ({cosine:.2f})")
        rows.append(row)
    headers = ["", "class", "prompt", "tokens", *names.images]
    headers += ["nearest class (cosine)"] if names.nearest else []
    if edge is not None and len(rows) > 2 * edge:
        omitted = ["", f"... {len(rows) - 2 * edge} more (--all)", *[""] * (len(headers) - 2)]
        rows = [*rows[:edge], omitted, *rows[-edge:]]
    align = ["right", "left", "left", *["right"] * (1 + len(names.images)), "left"][: len(headers)]
    return tabulate(rows, headers=headers, colalign=align, disable_numparse=True)


def remarks(names: Names) -> list[str]:
    """What is doubtful about the names, a sentence each."""
    found = [said_of_one_prompt(names.classnames)]
    doubts = [(name, doubt(name)) for name in names.classnames]
    shown = [f"{name!r} ({why})" for name, why in doubts if why]
    if shown:
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        found.append(
            f"CLIP cannot know what these names mean: {', '.join(shown[:10])}{more}. Call the "
            "classes by their names in English, by renaming the folders or in classnames.txt"
        )
    return [words for words in found if words]
