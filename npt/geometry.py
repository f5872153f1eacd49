"""Simplex ETFs, and the distance of features from one: LCD, MID and NC1 to NC3."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from npt.errors import InvalidArgument
from npt.losses import (
    check_pairing,
    check_text,
    cosine_gaps,
    paired_cosines,
    without_autocast,
)


class Degree(NamedTuple):
    """A degree of collapse, two 0-dim tensors: with signs as in the paper, and of magnitudes."""

    signed: Tensor
    absolute: Tensor


class NeuralCollapse(NamedTuple):
    """NC1, NC2, NC3 as 0-dim float64 tensors; all three are zero at full collapse."""

    nc1: Tensor
    nc2: Tensor
    nc3: Tensor


def simplex_etf(
    num_classes: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """K unit vectors with pairwise cosine -1 / (K - 1), in a random orientation: (K, D).

    A seed gives the same vectors on every machine, up to rounding. ValueError for K < 2 or
    D < K - 1.
    """
    if num_classes < 2:
        raise InvalidArgument(
            f"A simplex needs at least two classes, but num_classes is {num_classes}."
        )
    if dim < num_classes - 1:
        raise InvalidArgument(
            f"A simplex ETF of {num_classes} classes needs at least {num_classes - 1} dimensions, "
            f"but dim is {dim}."
        )
    # The frozen legacy generator: its stream does not change between numpy versions.
    gaussian = np.random.RandomState(seed).standard_normal((dim, num_classes - 1))
    basis, upper = np.linalg.qr(gaussian)  # (D, K - 1) with orthonormal columns
    basis = basis * np.sign(np.diag(upper))  # LAPACK leaves the signs open
    rows = _simplex_coordinates(num_classes) @ basis.T  # (K, D)
    return torch.from_numpy(rows).to(dtype)


def _simplex_coordinates(num_classes: int) -> np.ndarray:
    """The vertices of the simplex in K - 1 coordinates, from a Helmert basis: (K, K - 1)."""
    k = np.arange(1, num_classes, dtype=np.float64)
    helmert = np.tril(np.ones((num_classes, num_classes)), -1)[1:]  # row r: r ones, then zeros
    helmert[np.arange(num_classes - 1), np.arange(1, num_classes)] = -k
    helmert /= np.sqrt(k * (k + 1))[:, None]  # (K - 1, K) orthonormal rows, each summing to zero
    return np.sqrt(num_classes / (num_classes - 1)) * helmert.T


@torch.no_grad()
def language_collapse_degree(text_features: Tensor) -> Degree:
    """Delta_LCD (Definition 2): the average over i != j of cos(g_i, g_j) - mu, mu = -1 / (K - 1).

    (K, D), or (B, K, D) for an average over images. `signed` keeps the signs of the differences;
    it equals |sum of g|^2 / (K (K - 1)), so it is never negative and sees only the common part of
    the texts. `absolute` averages the magnitudes. ValueError for K < 2 or another shape.
    """
    check_text(text_features)
    with without_autocast(text_features.device):
        gap = cosine_gaps(text_features)  # (..., K, K), zero on the diagonal
    pairs = gap.shape[-1] * (gap.shape[-1] - 1)
    return Degree(gap.sum((-2, -1)).mean() / pairs, gap.abs().sum((-2, -1)).mean() / pairs)


@torch.no_grad()
def multimodal_isomorphism_degree(
    image_features: Tensor, text_features: Tensor, labels: Tensor
) -> Degree:
    """Delta_MID (Definition 3): the average over samples of cos(z_i, g_y(i)) - 1.

    Image (B, D) (images or class means), text (K, D) or (B, K, D), labels (B,). As printed
    (`signed`) it is never positive and rises to zero with alignment; `absolute` falls to zero.
    ValueError for shapes that do not fit.
    """
    check_pairing(image_features, text_features, labels)
    with without_autocast(image_features.device):
        gap = paired_cosines(image_features, text_features, labels) - 1  # (B,)
    return Degree(gap.mean(), gap.abs().mean())


@torch.no_grad()
def neural_collapse_metrics(features: Tensor, labels: Tensor, classifier: Tensor) -> NeuralCollapse:
    """NC1 to NC3 after Papyan, Han and Donoho (2020), in float64, over the classes present.

    `features` (N, D), `labels` (N,), `classifier` (K, D): the weight row of each class. With
    centred class means m_k (centred at the mean of class means), Sigma_W the covariance of the
    samples about their class means, Sigma_B that of the class means, C classes present:
        NC1  trace(Sigma_W pinv(Sigma_B)) / C      within-class scatter against the class means'
        NC2  mean over j != k of |cos(m_j, m_k) + 1 / (C - 1)|   distance from equal, widest angles
             (one number for the equiangular and the maximal-angle parts; lengths not looked at)
        NC3  || A / |A|_F - M / |M|_F ||_F         centred classifier against centred class means
    NC1 is infinite where all class means coincide. ValueError for fewer than two classes, shapes
    that do not fit, or a label outside 0..K-1.
    """
    _check_classified(features, labels, classifier)
    features, classifier = features.double(), classifier.double()
    present, index, counts = labels.to(features.device).unique(
        return_inverse=True, return_counts=True
    )
    num = len(present)
    if num < 2:
        raise InvalidArgument(
            "labels hold one class only, but neural collapse is about two or more."
        )
    sums = features.new_zeros(num, features.shape[1]).index_add_(0, index, features)
    means = sums / counts[:, None]  # (C, D)
    centred = means - means.mean(0)

    # Sigma_B = centred' centred / C has rank C - 1 at most, so its inverse lives on the right
    # singular vectors of `centred`: no D x D matrix is formed, let alone inverted.
    _, s, vh = torch.linalg.svd(centred, full_matrices=False)
    keep = s > s[0] * max(centred.shape) * torch.finfo(torch.float64).eps
    keep[num - 1 :] = False  # centring has taken one dimension; what is left there is rounding
    if bool(keep.any()):
        scores = (features - means[index]) @ (vh[keep] / s[keep, None]).T  # (N, rank)
        nc1 = scores.square().sum() / len(features)
    else:
        nc1 = features.new_tensor(float("inf"))

    nc2 = cosine_gaps(centred).abs().sum() / (num * (num - 1))
    weights = classifier[present.to(classifier.device)].to(centred.device)  # (C, D)
    weights = weights - weights.mean(0)
    nc3 = torch.linalg.norm(_unit_matrix(weights) - _unit_matrix(centred))
    return NeuralCollapse(nc1, nc2, nc3)


def _unit_matrix(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.norm(matrix).clamp_min(torch.finfo(matrix.dtype).tiny)


def _check_classified(features: Tensor, labels: Tensor, classifier: Tensor) -> None:
    if features.dim() != 2 or classifier.dim() != 2 or features.shape[1] != classifier.shape[1]:
        raise InvalidArgument(
            "features must be (N, D) and classifier (K, D), but their shapes are "
            f"{tuple(features.shape)} and {tuple(classifier.shape)}."
        )
    if tuple(labels.shape) != (len(features),):
        raise InvalidArgument(
            f"labels must be ({len(features)},), but its shape is {tuple(labels.shape)}."
        )
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= len(classifier):
        raise InvalidArgument(f"labels must be given and lie in 0..{len(classifier) - 1}.")
