"""Simplex ETFs, and the measures of collapse against definitions written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.geometry import (
    language_collapse_degree,
    multimodal_isomorphism_degree,
    neural_collapse_metrics,
    simplex_etf,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(2, 40), st.integers(0, 20), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_simplex_has_unit_rows_at_equal_angles(k, more, seed):
    etf = simplex_etf(k, k - 1 + more, seed, dtype=torch.float64)
    expected = torch.full((k, k), -1 / (k - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(etf @ etf.T, expected)
    torch.testing.assert_close(etf.sum(0), torch.zeros(k - 1 + more, dtype=torch.float64))


def test_simplex_depends_on_the_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = simplex_etf(4, 6, seed=3)
    assert first.dtype == torch.float32
    assert torch.equal(first, simplex_etf(4, 6, seed=3))
    assert not torch.allclose(first, simplex_etf(4, 6, seed=4))
    assert torch.equal(state, torch.get_rng_state())
    # Written down once, so that another machine or library version must agree.
    expected = torch.tensor([0.5863, 0.7379, 0.3343])
    torch.testing.assert_close(simplex_etf(3, 3, seed=0)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("k", "dim"), [(1, 4), (5, 3), (0, 4)])
def test_simplex_refuses(k, dim):
    with pytest.raises(ValueError, match="needs at least"):
        simplex_etf(k, dim)


@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_lcd_is_definition_2(k, d, seed):
    text = draw(k, d, seed=seed)
    g = text / text.norm(dim=1, keepdim=True)
    gaps = [float(g[i] @ g[j]) + 1 / (k - 1) for i in range(k) for j in range(k) if i != j]
    degree = language_collapse_degree(text)
    assert float(degree.signed) == pytest.approx(sum(gaps) / len(gaps), abs=1e-9)
    assert float(degree.absolute) == pytest.approx(sum(map(abs, gaps)) / len(gaps), abs=1e-9)
    assert float(degree.signed) >= -1e-12


def test_lcd_of_image_conditioned_texts_is_the_average_over_images():
    text = draw(4, 5, 6)
    each = torch.tensor([language_collapse_degree(t) for t in text], dtype=torch.float64)
    together = torch.stack(language_collapse_degree(text))
    torch.testing.assert_close(together, each.mean(0))


def test_degrees_are_zero_at_full_collapse():
    etf = simplex_etf(6, 9, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 5])
    assert all(abs(float(x)) < 1e-12 for x in language_collapse_degree(7 * etf))
    degree = multimodal_isomorphism_degree(etf[labels] * 3, etf, labels)
    assert all(abs(float(x)) < 1e-12 for x in degree)


@pytest.mark.parametrize("per_image", [False, True])
def test_mid_is_definition_3(per_image):
    image, labels = draw(3, 6), torch.tensor([4, 0, 4])
    text = draw(3, 5, 6, seed=1) if per_image else draw(5, 6, seed=1)
    own = [(text[i] if per_image else text)[label] for i, label in enumerate(labels.tolist())]
    cosines = torch.cosine_similarity(image, torch.stack(own))
    degree = multimodal_isomorphism_degree(image.float(), text.float(), labels)
    assert float(degree.signed) == pytest.approx(float((cosines - 1).mean()), abs=1e-6)
    assert float(degree.absolute) == -float(degree.signed)


def nc_by_hand(features, labels, classifier):
    """Papyan et al.'s definitions with D x D covariances and a pseudo-inverse."""
    present = sorted(set(labels.tolist()))
    means = torch.stack([features[labels == k].mean(0) for k in present])
    middle = means.mean(0)
    within = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for x, label in zip(features, labels.tolist(), strict=True):
        gap = x - means[present.index(label)]
        within += torch.outer(gap, gap) / len(features)
    between = (means - middle).T @ (means - middle) / len(present)
    nc1 = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-10)) / len(present)
    m = means - middle
    cos = [
        abs(float(torch.cosine_similarity(m[i], m[j], dim=0)) + 1 / (len(m) - 1))
        for i in range(len(m))
        for j in range(len(m))
        if i != j
    ]
    a = classifier[present] - classifier[present].mean(0)
    return float(nc1), sum(cos) / len(cos), float((a / a.norm() - m / m.norm()).norm())


@pytest.mark.parametrize(("k", "d"), [(3, 20), (6, 4), (2, 5), (5, 5)])
def test_neural_collapse_is_papyans(k, d):
    labels = torch.arange(40) % k
    features = draw(40, d) + 2 * draw(k, d, seed=1)[labels]
    classifier = draw(k, d, seed=2)
    measured = [float(x) for x in neural_collapse_metrics(features, labels, classifier)]
    assert measured == pytest.approx(nc_by_hand(features, labels, classifier), rel=1e-6)


def test_neural_collapse_leaves_absent_classes_out():
    labels = torch.tensor([0, 3, 3, 0, 4, 4, 4])
    features, classifier = draw(7, 6), draw(5, 6, seed=1)
    measured = [float(x) for x in neural_collapse_metrics(features, labels, classifier)]
    assert measured == pytest.approx(nc_by_hand(features, labels, classifier), rel=1e-6)


def test_neural_collapse_is_zero_at_collapse_and_blind_to_scale_and_place():
    etf = simplex_etf(5, 8, dtype=torch.float64)
    labels = torch.arange(20) % 5
    collapsed = neural_collapse_metrics(etf[labels] * 3 + 1, labels, 0.2 * etf - 4)
    assert all(float(x) < 1e-9 for x in collapsed)
    noisy = neural_collapse_metrics(etf[labels] + 0.1 * draw(20, 8), labels, etf)
    assert 0 < float(noisy.nc1) < 1


def test_neural_collapse_of_coinciding_means_is_infinite_not_an_error():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    metrics = neural_collapse_metrics(features, torch.tensor([0, 0, 1, 1]), torch.eye(2))
    assert float(metrics.nc1) == float("inf")
    assert all(bool(torch.isfinite(x)) for x in metrics[1:])


@pytest.mark.parametrize(
    ("features", "labels", "classifier", "words"),
    [
        (draw(4, 3), torch.tensor([1, 1, 1, 1]), draw(3, 3), "one class only"),
        (draw(4, 3), torch.tensor([0, 1, 2, 3]), draw(3, 3), r"0\.\.2"),
        (draw(4, 3), torch.tensor([0, 1]), draw(3, 3), r"labels must be \(4,\)"),
        (draw(4, 3), torch.tensor([0, 1, 2, 0]), draw(3, 4), "their shapes"),
    ],
)
def test_neural_collapse_refuses(features, labels, classifier, words):
    with pytest.raises(ValueError, match=words):
        neural_collapse_metrics(features, labels, classifier)
