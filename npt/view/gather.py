"""What the page of a run shows: the data, from its record and from its model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npt import classes, identity, results
from npt.classifier import Classifier, load
from npt.errors import NPTError, sentence
from npt.flags import recorded_cfg
from npt.session import dataset_of
from npt.view.tested import Tested, test_images

SPLIT = "test"
COLUMNS = ("train_count", "images", "accuracy", "lcd", "mid")  # some versions had fewer
DIFFERENT = 0.1  # percentage points between two passes that rounding does not explain


@dataclass
class View:
    """A run.

    folder: that of the run
    record: its result.json
    tested: its test images, if its model could classify them
    texts: class features (K, E), of length 1, by the prompts they are of
    missing: a sentence for each part that could not be made
    notes: what to know of the figures
    """

    folder: Path
    record: dict[str, Any]
    tested: Tested | None = None
    texts: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> list[str]:
        return [str(name) for name in self.record.get("classnames") or ()]

    @cached_property
    def _counts(self) -> classes.Counts | None:
        """Of the pass over the test images."""
        if self.tested is None:
            return None
        return classes.count(self.tested.labels, self.tested.predictions, len(self.names))

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Those of the test on record, else the accuracies of the pass over the images."""
        recorded = (self.record.get("results") or {}).get(SPLIT)
        if recorded or self._counts is None:
            return recorded or {}
        return classes.accuracies(self._counts, self.record.get("train_counts"))

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """An entry for each class: `npt.classes.per_class`."""
        recorded = (self.record.get("per_class") or {}).get(SPLIT)
        if recorded:
            return [{**dict.fromkeys(COLUMNS), **entry} for entry in recorded]
        counts = self._counts
        if counts is None:
            none = torch.zeros(len(self.names), dtype=torch.float64)
            counts = classes.Counts(none, none, none)
        return classes.per_class(self.names, counts, self.record.get("train_counts"), None, None)

    @cached_property
    def confusion(self) -> list[tuple[int, int, int]]:
        """Label, predicted label and images of each pair that occurs."""
        found = (self.record.get("confusion") or {}).get(SPLIT)
        if not found and self.tested is not None:
            found = classes.confusion(self.tested.labels, self.tested.predictions)
        return [(label, predicted, images) for label, predicted, images in found or ()]


def gather(folder: Path, root: str = "", backbone: str = "") -> View:
    """All that can be said of the run in a folder.

    root: the folder of its data sets, if it is not where it was (DATASET.ROOT)
    backbone: CLIP's weights, likewise
    NPTError if it is not the folder of a run. A part that cannot be made is named in `missing`.
    """
    record = results.of_run(folder)
    view = View(folder, record)
    if record.get("finished") is False:
        view.notes.append("The training has not ended: this is a model on the way.")
    with _named(view, "Images, features, text cosines and reliability"):
        classifier = load(folder, backbone=backbone)
        with _named(view, "Images, features and reliability"):
            view.tested = test_images(classifier, _items(view, classifier, root))
            _compare(view, view.tested)
        with _named(view, "Text cosines"):
            view.texts = _texts(view, classifier)
    return view


@contextmanager
def _named(view: View, part: str) -> Iterator[None]:
    """What goes wrong in a `with` block is noted as missing, unless it is a bug."""
    try:
        yield
    except Exception as error:
        why = sentence(error)
        if why is None:
            raise
        view.missing.append(f"{part}: {why}")


def _items(view: View, classifier: Classifier, root: str) -> list[Any]:
    """The test images of the run. NPTError if its classes are others now."""
    place = ["DATASET.ROOT", os.path.abspath(os.path.expanduser(root))] if root else []
    backbone = ["MODEL.BACKBONE.NAME", classifier.run.cfg.MODEL.BACKBONE.NAME]
    cfg = recorded_cfg(view.record, [*place, *backbone])
    dataset = dataset_of(cfg)
    if list(dataset.classnames) != classifier.classes:
        raise NPTError(
            f"the data set {cfg.DATASET.NAME} in {cfg.DATASET.ROOT or 'its folder'} has other "
            "classes now than those of the run: name the folder that it had (--root)"
        )
    if view.record.get("data") not in (None, identity.data_digest(dataset, cfg)):
        view.notes.append(
            "The lists of images, or the weights of CLIP, are not those of the run any more: what "
            "is computed of images here is of those that there are now."
        )
    return list(dataset.test or ())


def _compare(view: View, tested: Tested) -> None:
    """Note where the pass over the images does not give what is on record."""
    if tested.unreadable:
        view.notes.append(
            f"{len(tested.unreadable)} of the test images cannot be read, the first: "
            f"{tested.unreadable[0]}"
        )
    here, recorded = 100 * float(tested.hits.double().mean()), view.figures.get("accuracy")
    if recorded is not None and abs(here - recorded) > DIFFERENT:
        view.notes.append(
            f"The model recognises {here:.2f} % of the images here, and its record says "
            f"{recorded:.2f} %: they are not the same images, weights or precision."
        )


def _texts(view: View, classifier: Classifier) -> dict[str, Tensor]:
    """The class features of the run's prompts, and of the prompts written by hand."""
    from npt.trainers.zsclip import frozen_text_features

    run = classifier.run
    backbone = run.cfg.MODEL.BACKBONE.NAME
    by_hand = frozen_text_features(backbone, run.classes, classifier.device).float().cpu()
    texts = {"hand-written prompts": by_hand}
    if not run.learns:
        return texts
    if not classifier.depends_on_image:
        return {"learned prompts": classifier.text_features, **texts}
    if view.tested is not None:
        return {"learned prompts (mean over the images)": view.tested.texts, **texts}
    return texts
