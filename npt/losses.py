"""The regularisers, pure functions of features, in float32 inside: the two of NPT (Eqs. 5 and 6).

With text features g_k scaled to length sqrt(E_W) and image features z_i to length sqrt(E_H),
    L_LC = sum over i != j of (<g_i, g_j> - E_W mu)^2,  mu = -1 / (K - 1)
    L_MI = sum over images of (<z_i, g_y(i)> - sqrt(E_W E_H))^2.
The paper prints sums. It is open whether its weights 0.3 and 0.8 belong to sums or to means, hence
the argument `reduction`:
    "mean"   L_LC: mean over the K (K - 1) pairs       L_MI: mean over the batch
    "class"  L_LC: sum over j, mean over the classes i  L_MI: mean over the batch
    "sum"    both as printed
If every image has text features of its own (CoCoOp), L_LC is computed per image and averaged.

Beyond the paper: L_LC within clusters of classes, L_MI balanced over classes, and the distance of
class texts from those of the frozen CLIP. A later paper, CPT (CVPR 2026), has terms of this kind;
only a secondary description of it could be read, so details of ours may differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from npt.config import ANCHORS, REDUCTIONS
from npt.errors import InvalidArgument


def language_collapse_loss(
    text_features: Tensor,
    e_w: float = 1.0,
    reduction: str = "mean",
    same: Tensor | None = None,
) -> Tensor:
    """L_LC (Eq. 5): zero if the class texts form a simplex ETF.

    `text_features` is (K, D), or (B, K, D) if each image has its own; any length, any float
    dtype. `same` (P, 2) are the pairs (i, j), each in both orders, of classes that have the same
    prompt: their texts are equal whatever is learned, so these pairs are left out of the sum and
    of the mean. Returns a scalar of float32 (float64 for float64 input). ValueError for K < 2,
    another shape, `e_w` that is not positive, or an unknown reduction.
    """
    check_text(text_features)
    _check_energy("e_w", e_w)
    _check_reduction(reduction)
    num_classes = text_features.shape[-2]
    with without_autocast(text_features.device):
        gap = cosine_gaps(text_features)  # (..., K, K)
        left_out = 0
        if same is not None and len(same):
            gap[..., same[:, 0], same[:, 1]] = 0
            left_out = len(same)
        total = e_w**2 * gap.square().sum((-2, -1)).mean()
    pairs = num_classes * (num_classes - 1) - left_out
    return total / {"mean": max(pairs, 1), "class": num_classes, "sum": 1}[reduction]


def multimodal_isomorphism_loss(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    e_w: float = 1.0,
    e_h: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """L_MI (Eq. 6): zero if every image has the direction of its class text.

    `image_features` is (B, D), `text_features` (K, D) or (B, K, D), `labels` (B,) of integers.
    Returns a scalar of float32 (float64 for float64 input). ValueError for shapes that do not fit,
    a length that is not positive, an unknown reduction, or a label outside 0..K-1; labels on an
    accelerator are not checked, because that would synchronise with the device.
    """
    _check_reduction(reduction)
    errors = _isomorphism_errors(image_features, text_features, labels, e_w, e_h)  # (B,)
    return errors.sum() if reduction == "sum" else errors.mean()


def _isomorphism_errors(
    image_features: Tensor, text_features: Tensor, labels: Tensor, e_w: float, e_h: float
) -> Tensor:
    """The squares in the sum of Eq. 6: (B,)."""
    check_pairing(image_features, text_features, labels)
    _check_energy("e_w", e_w)
    _check_energy("e_h", e_h)
    with without_autocast(image_features.device):
        cosines = paired_cosines(image_features, text_features, labels)
        return (e_w * e_h) * (cosines - 1).square()


# ---- beyond the paper


def clustered_collapse_loss(
    text_features: Tensor,
    clusters: Sequence[Tensor],
    e_w: float = 1.0,
    reduction: str = "mean",
    same: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """L_LC within each cluster, averaged over clusters: an ETF of each cluster's own classes.

    `text_features` (K, D) or (B, K, D); `clusters` are tensors of class labels, each with mu of
    its own size. Clusters of one class have no pair and do not count; without any other the loss
    is zero. `same` has an entry for each cluster, in its own numbering. It and `reduction` are as
    in `language_collapse_loss`; CPT (CVPR 2026, by a secondary description) sums over the pairs of
    a cluster. One cluster of all classes gives L_LC.
    """
    losses = [
        language_collapse_loss(text_features[..., members, :], e_w, reduction, pairs)
        for members, pairs in zip(clusters, same or [None] * len(clusters), strict=True)
        if len(members) > 1
    ]
    return torch.stack(losses).mean() if losses else 0.0 * text_features.float().sum()


def balanced_isomorphism_loss(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    e_w: float = 1.0,
    e_h: float = 1.0,
) -> Tensor:
    """L_MI in which every class counts the same, however many images it has.

    It is the mean over the batch of each image's error times the weight of its class. With the
    weights N / (C n_k) (`npt.remedies.balanced_weights`), its mean over an epoch is the mean over
    classes of the mean over their images. Other arguments and errors as in
    `multimodal_isomorphism_loss`; `class_weights` is (K,). After CPT (CVPR 2026), by a secondary
    description.
    """
    errors = _isomorphism_errors(image_features, text_features, labels, e_w, e_h)  # (B,)
    return (errors * class_weights.to(errors)[labels.to(errors.device)]).mean()


def anchor_loss(text_features: Tensor, frozen_text: Tensor, kind: str = "l1") -> Tensor:
    """The mean over classes of the distance of a class text from its frozen text, both of length 1.

    kind: "l1", the sum of absolute differences (CPT, CVPR 2026, by a secondary description), or
    "squared", the squared Euclidean distance (KgCoOp, Yao et al., CVPR 2023)
    `text_features` (K, D) or (B, K, D), `frozen_text` (K, D). ValueError for shapes that do not
    fit, or an unknown kind.
    """
    check_text(text_features)
    if text_features.shape[-2:] != frozen_text.shape:
        raise InvalidArgument(
            f"text_features are {tuple(text_features.shape)} and frozen_text "
            f"{tuple(frozen_text.shape)}, which are not of the same classes and dimensions."
        )
    if kind not in ANCHORS:
        raise InvalidArgument(f'kind must be one of {", ".join(ANCHORS)}, but it is "{kind}".')
    with without_autocast(text_features.device):
        unit = unit_rows(text_features)
        difference = unit - unit_rows(frozen_text).to(unit)  # (..., K, D)
        distance = difference.abs() if kind == "l1" else difference.square()
    return distance.sum(-1).mean()


# ---- shared with npt.geometry


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switch autocast off inside a `with` block, so that matrix products stay in float32."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # a device type without autocast in this torch
        return nullcontext()


def unit_rows(features: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 (float64 for float64 input)."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def cosine_gaps(text_features: Tensor) -> Tensor:
    """cos(g_i, g_j) - mu for i != j, zero on the diagonal: (..., K, D) -> (..., K, K)."""
    unit = unit_rows(text_features)
    gap = unit @ unit.transpose(-2, -1) + 1 / (unit.shape[-2] - 1)  # (..., K, K)
    gap.diagonal(dim1=-2, dim2=-1).zero_()  # exact, and no K x K mask
    return gap


def paired_cosines(image_features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
    """cos(z_i, g_y(i)) of each image with the text of its class: (B,)."""
    labels = labels.to(text_features.device)
    if text_features.dim() == 3:
        rows = torch.arange(len(labels), device=labels.device)
        own = text_features[rows, labels]  # (B, D)
    else:
        own = text_features[labels]  # (B, D)
    return (unit_rows(image_features) * unit_rows(own)).sum(-1)


def check_text(text_features: Tensor) -> None:
    """ValueError unless (K, D) or (B, K, D) with at least two classes."""
    shape = tuple(text_features.shape)
    if len(shape) not in (2, 3):
        raise InvalidArgument(
            f"text_features must be (K, D) or (B, K, D), but its shape is {shape}."
        )
    if shape[-2] < 2:
        raise InvalidArgument(
            f"text_features holds {shape[-2]} class, but a simplex needs at least two classes."
        )


def check_pairing(image_features: Tensor, text_features: Tensor, labels: Tensor) -> None:
    """ValueError unless images, texts and labels fit one another."""
    check_text(text_features)
    if image_features.dim() != 2 or not len(image_features):
        raise InvalidArgument(
            "image_features must be (B, D) with B at least 1, but its shape is "
            f"{tuple(image_features.shape)}."
        )
    batch, dim = image_features.shape
    if text_features.shape[-1] != dim:
        raise InvalidArgument(
            f"image_features have {dim} dimensions and text_features {text_features.shape[-1]}; "
            "both must come from one model."
        )
    if text_features.dim() == 3 and len(text_features) != batch:
        raise InvalidArgument(
            f"text_features hold the texts of {len(text_features)} images, but there are {batch}."
        )
    if tuple(labels.shape) != (batch,):
        raise InvalidArgument(f"labels must be ({batch},), but its shape is {tuple(labels.shape)}.")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise InvalidArgument(f"labels must be class indices, but their dtype is {labels.dtype}.")
    if labels.device.type == "cpu":
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= text_features.shape[-2]:
            raise InvalidArgument(
                f"labels must lie in 0..{text_features.shape[-2] - 1}, but they range from {low} "
                f"to {high}."
            )


def _check_energy(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InvalidArgument(f"{name} must be a positive number, but it is {value}.")


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise InvalidArgument(
            f'reduction must be one of {", ".join(REDUCTIONS)}, but it is "{reduction}".'
        )
