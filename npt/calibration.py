"""Calibration: whether a classifier is right as often as it says. Pure functions, in float64.

Scores (N, K) are logits. Rows that are probabilities already (`are_probabilities`) count as such: a
softmax of them would say something else, and their logarithms are logits with the same softmax.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from npt.errors import InvalidArgument

BINS = 15  # as in Guo et al. (2017)
TEMPERATURES = (1e-3, 1e3)  # between which one is searched for
HALVINGS = 40  # of the range of their logarithms: then it is known to 11 digits


def are_probabilities(scores: Tensor) -> bool:
    """Whether no score (N, K) is negative and every row sums to 1, within rounding."""
    return bool(_are_probabilities(scores))


def _are_probabilities(scores: Tensor) -> Tensor:
    rounding = 1e-4 + 4 * torch.finfo(scores.dtype).eps
    sums = scores.sum(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return (scores >= 0).all() & ((sums - 1).abs() <= rounding).all()


def as_logits(scores: Tensor, probabilities: bool) -> Tensor:
    """Logits (N, K) of float32 or better, of scores that are probabilities or not."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if probabilities else scores


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """ECE in percent (Guo et al., On Calibration of Modern Neural Networks, 2017, Eq. 3).

    The images are put into `bins` intervals of equal width, ((m - 1) / bins, m / bins], by their
    confidence, the largest softmax probability. ECE is the mean over images of the distance between
    the accuracy and the mean confidence of their interval. NaN where a confidence is not a number.

    logits (N, K), labels (N,). ValueError for no images, shapes that do not fit, labels outside of
    0..K-1, or fewer than one bin.
    """
    logits, labels = _checked(logits, labels)
    confidence, predictions = logits.softmax(-1).max(-1)
    return error_of_confidences(confidence, predictions == labels, bins)


def error_of_confidences(confidence: Tensor, hits: Tensor, bins: int = BINS) -> float:
    """`expected_calibration_error` of confidences (N,), and of whether the prediction is right."""
    confidence, place = confidence.double(), _intervals(confidence, bins)
    if not bool(confidence.isfinite().all()):
        return math.nan
    gaps = torch.bincount(place, weights=confidence - hits.double(), minlength=bins)
    return 100 * float(gaps.abs().sum()) / len(confidence)


class Reliability(NamedTuple):
    """Of each interval of confidences, (bins,): its images, and their means; NaN without images."""

    images: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(confidence: Tensor, hits: Tensor, bins: int = BINS) -> Reliability:
    """The intervals that `error_of_confidences` is a mean over; both of finite values (N,)."""
    confidence, place = confidence.double(), _intervals(confidence, bins)
    images = torch.bincount(place, minlength=bins)
    sums = (torch.bincount(place, weights=x, minlength=bins) for x in (confidence, hits.double()))
    return Reliability(images, *(x / images for x in sums))


def _intervals(confidence: Tensor, bins: int) -> Tensor:
    """The number of the interval of each confidence, (N,)."""
    if bins < 1:
        raise InvalidArgument(f"bins must be at least 1, but it is {bins}.")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    return torch.bucketize(confidence.double(), edges[1:-1])  # an edge belongs to the one below it


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T at which softmax(logits / T) has the smallest mean negative log-likelihood.

    That is convex in 1 / T, so the minimum is where its slope changes its sign, which is found by
    halving the range of log T. The result is at an end of that range (`TEMPERATURES`) if the
    likelihood grows up to there: at the lower end if all images are classified correctly. If no T
    makes a difference, it is 1.

    logits (N, K), labels (N,). ValueError for no images, shapes that do not fit, labels outside of
    0..K-1, or logits that are infinite or NaN.
    """
    logits, labels = _checked(logits, labels)
    if not bool(logits.isfinite().all()):
        raise InvalidArgument("logits must be finite numbers, but some are infinite or NaN.")
    # The likelihood sees differences only, and with these the slope is a sum without cancellation.
    gaps = logits - logits.gather(1, labels[:, None])  # (N, K), zero at the label
    if not bool(gaps.any()):
        return 1.0
    low, high = map(math.log, TEMPERATURES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = float(((gaps / math.exp(middle)).softmax(-1) * gaps).sum())  # over 1 / T, times N
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _checked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) in float64 and labels (N,) on their device."""
    if scores.dim() != 2 or not scores.dtype.is_floating_point:
        raise InvalidArgument(
            "logits must be (N, K) of floating-point numbers, but they are "
            f"{tuple(scores.shape)} of {scores.dtype}."
        )
    images, classes = scores.shape
    if not images or not classes:
        raise InvalidArgument(
            f"logits are of {images} images and {classes} classes, but calibration is about at "
            "least one of both."
        )
    if tuple(labels.shape) != (images,):
        raise InvalidArgument(
            f"labels must be ({images},), but the shape is {tuple(labels.shape)}."
        )
    if labels.dtype.is_floating_point:
        raise InvalidArgument(f"labels must be class indices, but their dtype is {labels.dtype}.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InvalidArgument(f"labels must lie in 0..{classes - 1}.")
    logits = as_logits(scores.double(), are_probabilities(scores))
    return logits, labels.to(scores.device).long()


class Scaling(NamedTuple):
    """A fitted temperature."""

    temperature: float
    of_probabilities: bool  # whether the scores that it was fitted on were probabilities

    @classmethod
    def fitted(cls, scores: Tensor, labels: Tensor) -> Scaling:
        """As in `fit_temperature`, which also says which errors there are."""
        return cls(fit_temperature(scores, labels), are_probabilities(scores))


class Confidences:
    """The confidences of a split, batch by batch; of its scores nothing else is kept.

    They stay where the scores are until `figures`, because a copy would wait for the device.

    scaling: a temperature at which the confidences are wanted, too
    """

    def __init__(self, scaling: Scaling | None = None):
        self.scaling = scaling
        self._probabilities: list[Tensor] = []  # whether the scores of a batch are
        self._of_logits: list[Tensor] = []  # (B,) confidences if the scores are logits
        self._of_probabilities: list[Tensor] = []  # (B,) and if they are probabilities
        self._scaled: list[Tensor] = []  # (B,) and at the temperature

    def add(self, scores: Tensor) -> None:
        """Add the scores (B, K) of a batch."""
        scores = scores if scores.dtype.is_floating_point else scores.float()
        self._probabilities.append(_are_probabilities(scores))
        self._of_logits.append(as_logits(scores, False).softmax(-1).amax(-1))
        self._of_probabilities.append(scores.amax(-1))
        if self.scaling is not None:
            logits = as_logits(scores, self.scaling.of_probabilities)
            scaled = (logits / self.scaling.temperature).softmax(-1)
            self._scaled.append(scaled.amax(-1))

    def figures(self, hits: Tensor) -> dict[str, float]:
        """`ece`, and with a temperature also `temperature` and `ece_scaled`.

        hits: (N,) whether the prediction is right, for each image in order
        """
        probabilities = bool(torch.stack(self._probabilities).all())
        raw = self._of_probabilities if probabilities else self._of_logits
        found = {"ece": error_of_confidences(torch.cat(raw).cpu(), hits)}
        scaling = self.scaling
        if scaling is not None and scaling.of_probabilities == probabilities:
            found["temperature"] = scaling.temperature
            found["ece_scaled"] = error_of_confidences(torch.cat(self._scaled).cpu(), hits)
        return found
