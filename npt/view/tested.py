"""One pass of a run's model over its test images, and what the page needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from npt.classifier import Classifier
from npt.classifier.decoding import decoded
from npt.errors import NPTError
from npt.losses import unit_rows

TOP = 3  # of an image's probabilities only the largest ones are kept


@dataclass(frozen=True)
class Tested:
    """N test images. Probabilities are at the temperature of the run, as `npt predict` says them.

    unreadable: a sentence for each image that could not be read, and is not among the N
    """

    files: list[str]
    labels: Tensor  # (N,)
    top: Tensor  # (N, k) the most probable classes, the best first
    probabilities: Tensor  # (N, k) theirs
    confidence: Tensor  # (N,) the largest probability at temperature 1
    images: Tensor  # (N, E) features, of length 1
    texts: Tensor  # (K, E) features, of length 1: of the mean over the images, if each has its own
    unreadable: list[str]

    @property
    def predictions(self) -> Tensor:
        return self.top[:, 0]

    @property
    def hits(self) -> Tensor:
        """(N,) whether the prediction is right."""
        return self.predictions == self.labels

    def mistakes(self, most: int) -> list[int]:
        """The images that were taken for another class, the most confident first."""
        return self._ordered(~self.hits, descending=True)[:most]

    def uncertain(self, most: int) -> list[int]:
        """The images that were recognised, the least confident first."""
        return self._ordered(self.hits, descending=False)[:most]

    def _ordered(self, which: Tensor, descending: bool) -> list[int]:
        places = which.nonzero()[:, 0]
        order = self.probabilities[places, 0].sort(stable=True, descending=descending).indices
        return places[order].tolist()


def test_images(classifier: Classifier, items: Sequence[Any]) -> Tested:
    """Classify images, the `Datum`s of a test. NPTError if there are none that can be read."""
    files: list[str] = []
    unreadable: list[str] = []
    labels: list[int] = []
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    texts: Tensor | float = 0.0  # (K, E) sum over images
    label_of = iter([item.label for item in items])
    with tqdm(total=len(items), unit=" images", disable=None) as bar:
        for batch in decoded([item.impath for item in items], classifier):
            images = []
            for (file, image), label in zip(batch, label_of, strict=False):
                if isinstance(image, NPTError):
                    unreadable.append(str(image))
                else:
                    files.append(file)
                    labels.append(label)
                    images.append(image)
            if images:
                found = classifier.encode_batch(torch.stack(images))
                scaled = (found.logits / classifier.temperature).softmax(-1)
                values, indices = scaled.topk(min(TOP, scaled.shape[1]))
                confidence = found.logits.softmax(-1).amax(-1)
                columns.append((indices, values, confidence, found.images))
                of_image = found.texts.double()
                own = of_image.dim() == 3
                texts = texts + (of_image.sum(0) if own else of_image * len(images))
            bar.update(len(batch))
    if not isinstance(texts, Tensor):
        why = (
            f"none of {len(items)} can be read: {unreadable[0]}" if unreadable else "there are none"
        )
        raise NPTError(f"of its test images {why}")
    top, probabilities, confidences, features = (torch.cat(x) for x in zip(*columns, strict=True))
    return Tested(
        files=files,
        labels=torch.tensor(labels),
        top=top,
        probabilities=probabilities,
        confidence=confidences,
        images=features,
        texts=unit_rows(texts).float(),
        unreadable=unreadable,
    )
