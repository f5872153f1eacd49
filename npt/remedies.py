"""Remedies for long tails: what people change in the cross-entropy, one row each.

With the training images n_k of the classes, the logits s (B, K) and the labels y (B,), the loss is

    mean over the batch of  w_y(i) * f_i * cross-entropy(s_i + a, y_i)

where a (K,), w (K,) and f (B,) come from the remedies that are on:

    LOGIT_ADJUST   a = strength * log(n_k / n_max): Menon et al., "Long-tail learning via logit
                   adjustment" (ICLR 2021), and with strength 1 balanced softmax (Ren et al. 2020)
    CLASS_WEIGHT   w by inverse counts ("balanced"), or by the effective number of images
                   ("effective", Cui et al., CVPR 2019); the mean of w over the training images is 1
    FOCAL_GAMMA    f = (1 - p_y)^gamma: Lin et al., "Focal loss" (ICCV 2017)

They act in training only; a test uses the logits as they are. n_k is how often an epoch draws the
class: with a ClassBalancedSampler the loss corrects only what the sampler leaves. A class without
images counts as one with a single image, so that its logarithm exists. If all n_k are equal, a is
zero and w one, and nothing is changed, bit for bit.

Example: counts 8, 2, 2 give a = (0, -1.39, -1.39) with strength 1, and w = (0.5, 2, 2) with
"balanced", where 8 * 0.5 + 2 * 2 + 2 * 2 = 12, the number of images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npt import config
from npt.checks import Check, number, one_of
from npt.config import Key
from npt.errors import NPTError
from npt.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from npt import sampling
else:  # commands that only name the rows shall not wait for torch
    torch, sampling = later("torch"), later("npt.sampling")

NODE = "TRAINER.NPT"  # the config node of the keys
BALANCED = "ClassBalancedSampler"  # of npt.sampling
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {  # of torch's cross_entropy
    "none": lambda losses: losses,
    "mean": lambda losses: losses.mean(),
    "sum": lambda losses: losses.sum(),
}
Counts = Sequence[float]  # how often an epoch draws each class


@dataclass(frozen=True)
class Remedy:
    """A change of the cross-entropy, by one of three functions of the settings TRAINER.NPT.

    key: it is on if TRAINER.NPT.<key> differs from `off`
    meaning: of that key
    heading: of its column in `npt data show`
    shift: (settings, counts) -> what is added to the logit of each class
    weight: (settings, counts) -> the factor of the loss of each class
    factor: (settings, log-probabilities (B,) of the labels) -> the factor of each image (B,)
    """

    key: str
    off: Any
    meaning: str
    check: Check
    heading: str = ""
    shift: Callable[[Any, Counts], list[float]] | None = None
    weight: Callable[[Any, Counts], list[float]] | None = None
    factor: Callable[[Any, Tensor], Tensor] | None = None

    def is_on(self, settings: Any) -> bool:
        return settings is not None and settings.get(self.key, self.off) != self.off


# --------------------------------------------------------------------------- the rows
def log_priors(counts: Counts) -> list[float]:
    """log(n_k / n_max): zero for the largest class, and for all of them if they are equal."""
    counted = [max(1.0, n) for n in counts]
    return [math.log(n / max(counted)) for n in counted]


def balanced_weights(counts: Counts) -> list[float]:
    """N / (C n_k), with N images of the C classes that have some."""
    return _of_mean_one(counts, [1 / max(1.0, n) for n in counts])


def effective_weights(counts: Counts, beta: float) -> list[float]:
    """Proportional to (1 - beta) / (1 - beta^n_k): 1 for beta 0, `balanced_weights` towards 1.

    Cui et al. scale the weights to a sum of K; here their mean over the training images is 1, so
    that the learning rate keeps its meaning.
    """
    return _of_mean_one(counts, [(1 - beta) / (1 - beta ** max(1.0, n)) for n in counts])


def _of_mean_one(counts: Counts, weights: Sequence[float]) -> list[float]:
    """The weights times the factor that makes their mean over all images 1."""
    scale = sum(counts) / sum(n * w for n, w in zip(counts, weights, strict=True))
    return [round(w * scale, 12) for w in weights]  # exactly 1 if all are equal


def _logit_adjustment(settings: Any, counts: Counts) -> list[float]:
    return [settings.LOGIT_ADJUST * x for x in log_priors(counts)]


def _class_weight(settings: Any, counts: Counts) -> list[float]:
    if settings.CLASS_WEIGHT == "balanced":
        return balanced_weights(counts)
    return effective_weights(counts, config.setting(settings, "EFFECTIVE_BETA"))


def _focal(settings: Any, log_p: Tensor) -> Tensor:
    # From a fraction above 0: the gradient of 0^gamma is infinite for gamma below 1.
    return (-torch.expm1(log_p)).clamp_min(1e-12) ** settings.FOCAL_GAMMA


REMEDIES = {
    row.key: row
    for row in (
        Remedy(
            "LOGIT_ADJUST",
            0.0,
            "logit adjustment: log class priors, times this, on the logits of the loss; 1 is usual",
            number(0, 1000),
            "logit adjustment",
            shift=_logit_adjustment,
        ),
        Remedy(
            "CLASS_WEIGHT",
            "none",
            "weights of the classes in the loss: by inverse counts, or by the effective number of "
            "images",
            one_of("none", "balanced", "effective"),
            "class weight",
            weight=_class_weight,
        ),
        Remedy(
            "FOCAL_GAMMA",
            0.0,
            "focal loss: images count less the surer the model is of their class; 2 is usual",
            number(0, 50),
            factor=_focal,
        ),
    )
}
for _row in REMEDIES.values():
    config.add(f"{NODE}.{_row.key}", Key(_row.off, _row.meaning, _row.check))
EFFECTIVE = (f"{NODE}.CLASS_WEIGHT", one_of("effective"))
BETA = "by the effective number of images: 0 is no weights, towards 1 inverse counts"
config.add(f"{NODE}.EFFECTIVE_BETA", Key(0.999, BETA, number(0, 1, "[)"), EFFECTIVE))


# --------------------------------------------------------------------------- counts and columns
def drawn_counts(counts: Sequence[int], cfg: Any) -> list[float]:
    """How often an epoch draws each class: its images, unless a ClassBalancedSampler draws them."""
    loader = training_loader(cfg)
    if loader.get("SAMPLER") != BALANCED:
        return [float(n) for n in counts]
    return sampling.expected_draws(counts, loader.get("BALANCE_POWER", 1.0))


def training_loader(cfg: Any) -> Any:
    """The config node DATALOADER.TRAIN_X; empty if a host has none."""
    return cfg.get("DATALOADER", {}).get("TRAIN_X", {})


# Samplers for which `drawn_counts` knows how often an epoch draws each class.
COUNTED = ("RandomSampler", "SequentialSampler", BALANCED)


def warn_of_sampler(cfg: Any, names: str) -> None:
    """Warn if the sampler draws classes by chances that `drawn_counts` does not know.

    names: the keys that correct the counts, for the message; "" for none
    """
    sampler = training_loader(cfg).get("SAMPLER")
    if names and sampler is not None and sampler not in COUNTED:
        warnings.warn(
            f"{names} is by the numbers of training images, but the sampler {sampler} draws "
            f"classes by other chances: use {' or '.join(COUNTED)}.",
            stacklevel=4,
        )


def remedies_on(settings: Any) -> list[Remedy]:
    """The remedies that are on under the config node TRAINER.NPT."""
    return [row for row in REMEDIES.values() if row.is_on(settings)]


def columns(counts: Sequence[int], cfg: Any) -> dict[str, list[float]]:
    """What the remedies of a config do to each class, by heading; for `npt data show`."""
    settings = cfg.TRAINER.get("NPT")
    drawn = drawn_counts(counts, cfg)
    found = {"drawn per epoch": drawn} if drawn != [float(n) for n in counts] else {}
    for row in remedies_on(settings):
        of_class = row.shift or row.weight
        if of_class is not None:
            found[row.heading] = of_class(settings, drawn)
    return found


# --------------------------------------------------------------------------- the loss
class Remedies:
    """The cross-entropy with the remedies that are on, for classes with these counts."""

    def __init__(self, settings: Any, counts: Counts):
        self.settings, self.classes = settings, len(counts)
        rows = remedies_on(settings)
        shifts = [row.shift(settings, counts) for row in rows if row.shift]
        weights = [row.weight(settings, counts) for row in rows if row.weight]
        self.shift = _combined(shifts, sum, 0.0)  # (K,)
        self.weight = _combined(weights, math.prod, 1.0)  # (K,)
        self.factors = [row.factor for row in rows if row.factor]

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self.shift is not None or self.weight is not None or bool(self.factors)

    @property
    def names(self) -> str:
        """The keys that are on, for messages."""
        return ", ".join(f"{NODE}.{row.key}" for row in remedies_on(self.settings))

    def loss(
        self,
        cross_entropy: Callable[..., Tensor],
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The loss of logits (B, K) and labels (B,); the other arguments are those of torch.

        cross_entropy: torch's own function. NPTError where a remedy weights images, and the caller
        weights classes itself, ignores a label, or has a reduction that torch has no more.
        """
        if self.shift is not None:
            self.shift = self.shift.to(logits.device)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) + self.shift
        if self.weight is None and not self.factors:
            return cross_entropy(
                *(logits, target, weight, size_average, ignore_index, reduce, reduction),
                label_smoothing,
            )
        own = (weight, size_average, reduce, ignore_index) != (None, None, None, -100)
        if own or reduction not in REDUCTIONS:
            raise NPTError(
                "The trainer's cross-entropy has weights, an ignored label or a reduction of its "
                f"own, which do not go with {self.names}: switch CLASS_WEIGHT and FOCAL_GAMMA off."
            )
        losses = cross_entropy(
            *(logits, target), reduction="none", label_smoothing=label_smoothing
        )  # (B,)
        if self.weight is not None:
            self.weight = self.weight.to(losses.device)
            losses = losses * self.weight[target]
        if self.factors:
            log_p = torch.log_softmax(logits.float(), dim=-1)
            log_p = log_p.gather(1, target[:, None]).squeeze(1)  # (B,)
            for factor in self.factors:
                losses = losses * factor(self.settings, log_p)
        return REDUCTIONS[reduction](losses)


def _combined(
    rows: Sequence[list[float]], join: Callable[[Sequence[float]], float], neutral: float
) -> Tensor | None:
    """The values of all rows joined class by class (K,); None if they change nothing."""
    values = [join(of_class) for of_class in zip(*rows, strict=True)]
    return torch.tensor(values) if any(x != neutral for x in values) else None
