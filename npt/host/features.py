"""Reads the image and text features that a model classifies with, in its own forward pass.

Example: K = 3 classes, a batch of B = 2 images, features with D = 512 entries.

    with FeatureTap(model) as tap:
        logits = model(images)
        image, text = tap.take(logits=logits)

    CoOp (all images share the text features). The model calls
        image_encoder(images (2, 3, 224, 224))                -> (2, 512)
        text_encoder(prompts (3, 77, 512), token ids (3, 77)) -> (3, 512)
    take() returns image (2, 512) and text (3, 512).

    CoCoOp (the prompts depend on the image, so the text encoder runs once per image). It calls
        image_encoder(images (2, 3, 224, 224))                -> (2, 512)
        text_encoder(prompts (3, 77, 512), token ids (3, 77)) -> (3, 512)  for image 1
        text_encoder(prompts (3, 77, 512), token ids (3, 77)) -> (3, 512)  for image 2
    take() returns image (2, 512) and text (2, 3, 512).

    CoPrompt (trained layers follow the encoders, and their outputs are multiplied)
    take() returns what is multiplied: image (2, 512) and text (3, 512).

For a model that computes its features elsewhere, an adapter provides them (`npt.host.adapters`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from npt.errors import NPTError
from npt.host.adapters import HOW_TO_ADAPT, Adapter, Features, adapted
from npt.host.compare import ADDED, distance, leaves, same_directions, tolerance
from npt.host.outputs import ENCODERS, EncoderOutputs, PassFeatures, unwrap
from npt.host.products import Claim, Place, Product, Products
from npt.host.steps import is_of_batch
from npt.losses import unit_rows

__all__ = [
    "ENCODERS",
    "HOW_TO_ADAPT",
    "Adapter",
    "Claim",
    "FeatureTap",
    "Features",
    "PassFeatures",
    "unwrap",
]


class FeatureTap:
    """Records a model's forward passes in a `with` block.

    `take()` returns the features of the forward pass since the last call, and clears the record.
    In the first pass it finds out where they are:

    - the outputs of `model.image_encoder` and `model.text_encoder` (`npt.host.outputs`), if the
      model multiplies them, or multiples of them, to get its logits;
    - else what it multiplies (`npt.host.products`), at the same place in later passes;
    - else the outputs of the encoders, with a warning that says how far the logits are from a scale
      times their cosines.

    The first pass of an epoch and of a test decides anew: a model may go other ways there.

    model: in DataParallel or not
    adapter: a function that gives the features instead; it may take the `trainer`, too
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None = None, trainer: Any = None):
        self.model, self.adapter, self.trainer = model, adapter, trainer
        self.encoders = EncoderOutputs(model)
        self.products = Products()
        self._in_test = False
        # In tests, and in training: a place, or None for encoders and adapters; absent if unknown.
        self._found: dict[bool, Place | None] = {}
        self._epoch = -1  # of the last step
        self._told: set[str] = set()  # warnings and notes
        self._records = False  # whether products are recorded in this block
        self.busy = False  # whether what runs now is no part of the host's step

    def look_again(self, epoch: int) -> bool:
        """Decide anew in the first step of an epoch: some models change their ways on the way.

        Returns whether this is such a step.
        """
        first = epoch != self._epoch
        if first:
            self._epoch = epoch
            self._found.pop(False, None)
        return first

    @contextmanager
    def in_test(self) -> Iterator[None]:
        """A `with` block for the batches of a test."""
        self._found.pop(True, None)
        self._in_test = True
        try:
            with self:
                yield
        finally:
            self._in_test = False

    def __enter__(self) -> FeatureTap:
        self.encoders.hook()
        self._records = self._looks()
        self.products.active = True
        if self._records:
            self.products.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._records:
            self.products.__exit__(kind, error, trace)
        self.encoders.unhook()
        self.clear()

    def clear(self) -> None:
        """Clear the record."""
        self.encoders.clear()
        self.products.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is computed inside a `with` block is not recorded."""
        before, self.busy, self.products.active = self.busy, True, False
        try:
            yield
        finally:
            self.busy = before
            self.products.active = not before and self._looks()

    def _looks(self) -> bool:
        """Whether products must be recorded: the place is unknown, or is one among products."""
        return self._found.get(self._in_test, True) is not None

    def take(
        self,
        batch: Any = None,
        classes: int | None = None,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> PassFeatures:
        """Return the features of the last forward pass and clear the record.

        batch: the batch for the adapter; its tensors are moved to the model's device
        classes: the number K of classes, if it is known
        logits: (B, K) of this pass, if they are known; else those of a loss inside it are used
        labels: (B,), if they are known
        """
        with self.paused():
            try:
                if self.adapter is not None:
                    self._found[self._in_test] = None
                    return self._by_adapter(self.adapter, batch, classes)
                return self._by_place(logits, labels) or self._by_logits(classes, logits, labels)
            finally:
                self.clear()

    def encoded(self, classes: int | None) -> PassFeatures | None:
        """The outputs of the encoders, if they are clear. The record is kept."""
        try:
            return self.encoders.features(classes)
        except NPTError:
            return None

    def of_claim(self, claim: Claim, batch: Any, labels: Tensor) -> PassFeatures | None:
        """The features of a loss outside of the model's forward pass; None if there are none.

        The record is kept.
        """
        if self.adapter is not None:
            return self._by_adapter(self.adapter, batch, None)
        logits = self.products.without_shift(claim)
        found = self.products.giving(logits, labels)
        if found is not None:
            self._tell(found[1])
            return PassFeatures(found[1].image, found[1].text)
        features = self.encoded(logits.shape[1]) if claim.target is not None else None
        if features is not None:
            self._compare(features, [logits], labels)
        return features

    def _by_adapter(self, adapter: Adapter, batch: Any, classes: int | None) -> PassFeatures:
        """What an adapter returns, with the encoders' outputs where it returns None."""
        outputs = {name: list(x) for name, x in self.encoders.recorded.items()}
        image, text = adapted(adapter, unwrap(self.model), batch, self.trainer)
        if image is not None and text is not None:
            return PassFeatures(image, text.to(image.device))
        self.encoders.recorded.update(outputs)  # an adapter may run the encoders again
        return self.encoders.features(classes, image, text)

    def _by_place(self, logits: Tensor | None, labels: Tensor | None) -> PassFeatures | None:
        """The features at the place of an earlier pass."""
        place, rows = self._found.get(self._in_test), logits if logits is not None else labels
        if place is None or rows is None:
            return None
        product = self.products.at(place, len(rows))
        return None if product is None else PassFeatures(product.image, product.text)

    def _by_logits(
        self, classes: int | None, logits: Tensor | None, labels: Tensor | None
    ) -> PassFeatures:
        if not self._looks():  # the encoders' outputs, as an earlier pass has shown
            return self.encoders.features(classes)
        known = [logits] if logits is not None else self._logits_of_losses(classes, labels)
        found = next(filter(None, (self.products.giving(x, labels) for x in known)), None)
        features, unclear = None, None
        try:
            features = self.encoders.features(classes)
        except NPTError as error:
            unclear = error
        if found is not None and (features is None or not self._same(features, found[1])):
            place, product = found
            self._found[self._in_test] = place
            self._tell(product)
            return PassFeatures(product.image, product.text)
        if features is None:
            raise unclear or NPTError(HOW_TO_ADAPT)
        if found is None:
            self._compare(features, known, labels)
        self._found[self._in_test] = None
        return features

    def _logits_of_losses(self, classes: int | None, labels: Tensor | None) -> list[Tensor]:
        """What the losses of this pass were computed of: cross-entropies of the batch first."""
        mine, others = [], []
        for claim in self.products.claims:
            logits, target = claim
            if target is not None and (labels is None or is_of_batch(target, labels)):
                mine.append(self.products.without_shift(claim))
            elif labels is not None and logits.shape == (len(labels), classes):
                others.append(logits)
        return mine + others

    def _same(self, features: PassFeatures, product: Product) -> bool:
        """Whether the encoders' outputs are the features of a product, up to their lengths.

        In training, they must also depend on all that is trained: a layer that starts as the
        identity follows them, otherwise.
        """
        if self._in_test and isinstance(self._found.get(False), Place):
            return False
        pairs = ((features.image, product.image), (features.text, product.text))
        return all(same_directions(x, y) for x, y in pairs) and (
            leaves(product.image) <= leaves(features.image)
            and leaves(product.text) <= leaves(features.text)
        )

    # ---- what the user is told, once

    def _tell(self, product: Product) -> None:
        if "note" in self._told:
            return
        self._told.add("note")
        image, text = (tuple(x.shape) for x in (product.image, product.text))
        print(
            f"NPT reads the features that {type(unwrap(self.model)).__name__} multiplies to get "
            f"its logits, which are not its encoders' outputs: images {image}, texts {text}"
        )

    def _compare(self, features: PassFeatures, known: list[Tensor], labels: Tensor | None) -> None:
        """Warn if no logits are a multiple of the features' cosines, or of their products."""
        image, text = (unit_rows(x.detach()) for x in features)
        given = features.text.detach().to(text)
        cosines = [_products(image, x) for x in (text, given)]
        pairs = [(x, y) for x in known for y in cosines if x.shape == y.shape]
        allowed = 2 * tolerance(*known, *features)[0] if known else 0.0
        fits = any(distance(x, y, labels, added) <= allowed for x, y in pairs for added in ADDED)
        finite = all(bool(x.isfinite().all()) for x in (*known, *features))
        if fits or not known or not finite or "warning" in self._told:
            return
        self._told.add("warning")
        by = _difference(*pairs[0]) if pairs else "their shapes differ"
        warnings.warn(
            f"{'In tests, the' if self._in_test else 'The'} logits of "
            f"{type(unwrap(self.model)).__name__} are not a scale times the cosines of the "
            f"features that NPT reads at its encoders ({by}), so terms and measures are those of "
            f"features that it does not classify with alone: {HOW_TO_ADAPT}.",
            stacklevel=2,
        )


def _products(image: Tensor, text: Tensor) -> Tensor:
    """image (B, D), text (K, D) or (B, K, D) -> (B, K)"""
    return image @ text.t() if text.dim() == 2 else (text @ image[:, :, None])[..., 0]


def _difference(logits: Tensor, cosines: Tensor) -> str:
    """By how much logits (B, K) differ from the best multiple of cosines."""
    y, x = (t.detach().to("cpu", torch.float64) for t in (logits, cosines))
    scale = (x * y).sum() / x.square().sum()
    largest, spread = float((y - scale * x).abs().max()), float(y.std(1).mean())
    return f"they differ by up to {largest:.3g}, where those of an image spread by {spread:.3g}"
