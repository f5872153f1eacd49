"""Clusters of classes, and the terms that use them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.clusters import clusters_of, k_means
from npt.losses import (
    anchor_loss,
    balanced_isomorphism_loss,
    clustered_collapse_loss,
    language_collapse_loss,
    multimodal_isomorphism_loss,
)
from npt.remedies import balanced_weights


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 5), st.booleans())
@settings(deadline=None, max_examples=40)
def test_every_class_is_in_one_cluster_of_at_most_the_size(k, size, seed, equal):
    features = torch.ones(k, 6) if equal else draw(k, 6, seed=seed)
    before = torch.get_rng_state()
    found = clusters_of(features, size, seed)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.cat(found).sort().values.tolist() == list(range(k))
    assert all(0 < len(members) <= size for members in found)
    again = clusters_of(3 * features, size, seed)  # lengths do not matter
    assert [m.tolist() for m in found] == [m.tolist() for m in again]


def test_groups_that_lie_apart_are_found():
    centres = 10 * torch.eye(4, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3]).repeat(5)
    rows = centres[labels] + 0.1 * draw(20, 8)
    found = clusters_of(rows, 5)
    assert sorted(m.tolist() for m in found) == [list(range(i, 20, 4)) for i in range(4)]


def test_k_means_ends_where_no_row_is_nearer_to_another_mean():
    rows = draw(50, 3)
    nearest = k_means(rows, 6, torch.Generator().manual_seed(0))
    means = torch.stack([rows[nearest == c].mean(0) for c in range(6)])
    assert torch.equal(torch.cdist(rows, means).argmin(1), nearest)


# --------------------------------------------------------------------------- L_LC in clusters
@pytest.mark.parametrize("reduction", ["mean", "class", "sum"])
@pytest.mark.parametrize("shape", [(7, 6), (3, 7, 6)])
def test_a_cluster_of_all_classes_is_the_paper_s_term(shape, reduction):
    text = draw(*shape)
    whole = clusters_of(text.reshape(-1, 7, 6)[0], 7)
    found = clustered_collapse_loss(text, whole, 1.5, reduction)
    torch.testing.assert_close(found, language_collapse_loss(text, 1.5, reduction))


def test_the_sum_over_pairs_of_a_cluster_is_averaged_over_clusters():
    text, clusters = draw(6, 8), [[0, 3, 4], [1, 5], [2]]
    unit = text / text.norm(dim=1, keepdim=True)
    sums = []
    for members in clusters[:2]:  # one class has no pair
        mu = -1 / (len(members) - 1)
        pairs = [(i, j) for i in members for j in members if i != j]
        sums.append(sum((float(unit[i] @ unit[j]) - mu) ** 2 for i, j in pairs))
    found = clustered_collapse_loss(text, [torch.tensor(m) for m in clusters], 1.0, "sum")
    assert float(found) == pytest.approx(sum(sums) / 2)


def test_clusters_of_single_classes_have_no_loss_and_a_gradient_of_zero():
    text = draw(3, 4).requires_grad_()
    loss = clustered_collapse_loss(text, [torch.tensor([k]) for k in range(3)])
    loss.backward()
    assert loss.item() == 0 and not text.grad.any()


# --------------------------------------------------------------------------- L_MI over classes
@pytest.mark.parametrize("per_image", [True, False])
def test_balanced_alignment_is_the_mean_over_classes_of_the_mean_over_images(per_image):
    counts = [5, 2, 1, 0]
    labels = torch.tensor([0] * 5 + [1] * 2 + [2])
    image, text = draw(8, 6), draw(4, 6, seed=1)
    weights = torch.tensor(balanced_weights(counts))
    each = [
        multimodal_isomorphism_loss(image[labels == k], text, labels[labels == k], 1.5, 0.5)
        for k in range(3)
    ]
    given_text = text.expand(8, 4, 6) if per_image else text
    found = balanced_isomorphism_loss(image, given_text, labels, weights, 1.5, 0.5)
    torch.testing.assert_close(found, torch.stack(each).mean())
    batches = [
        balanced_isomorphism_loss(image[i : i + 4], text, labels[i : i + 4], weights, 1.5, 0.5)
        for i in (0, 4)
    ]
    torch.testing.assert_close(torch.stack(batches).mean(), found)  # of an epoch of batches


def test_with_equal_counts_it_is_the_paper_s_term():
    image, text, labels = draw(4, 6), draw(4, 6, seed=1), torch.arange(4)
    found = balanced_isomorphism_loss(image, text, labels, torch.tensor(balanced_weights([3] * 4)))
    assert torch.equal(found, multimodal_isomorphism_loss(image, text, labels))


# --------------------------------------------------------------------------- the anchor
def test_both_distances_from_the_frozen_text():
    text, frozen = draw(2, 5, 6), draw(5, 6, seed=1)
    g = (text / text.norm(dim=-1, keepdim=True)).numpy()
    f = (frozen / frozen.norm(dim=-1, keepdim=True)).numpy()
    assert float(anchor_loss(text, frozen)) == pytest.approx(abs(g - f).sum(-1).mean())
    squared = ((g - f) ** 2).sum(-1).mean()
    assert float(anchor_loss(text, frozen, "squared")) == pytest.approx(squared)
    assert squared == pytest.approx(2 - 2 * (g * f).sum(-1).mean())  # KgCoOp's score, doubled
    assert float(anchor_loss(frozen, 2 * frozen)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: anchor_loss(draw(5, 6), draw(4, 6)), "same classes"),
        (lambda: anchor_loss(draw(5, 6), draw(5, 6), "l2"), "l1, squared"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
