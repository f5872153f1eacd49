"""Calibration against plain numpy in float64, and its properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.calibration import (
    TEMPERATURES,
    Confidences,
    Scaling,
    error_of_confidences,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from npt.errors import NPTError


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def plain_ece(logits, labels, bins=15):
    """Percent, bin by bin as Eq. 3 of Guo et al. is written."""
    probabilities = softmax(np.asarray(logits, dtype=np.float64))
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == np.asarray(labels)
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            total += inside.sum() * abs(hits[inside].mean() - confidence[inside].mean())
    return 100 * total / len(confidence)


def plain_nll(logits, labels, temperature):
    z = np.asarray(logits, dtype=np.float64) / temperature
    top = z.max(1)
    return float((top + np.log(np.exp(z - top[:, None]).sum(1)) - z[range(len(z)), labels]).mean())


def sample(seed, images=300, classes=5, scale=4.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((images, classes))
    labels = np.array([rng.choice(classes, p=row) for row in softmax(0.5 * logits)])
    return torch.tensor(logits), torch.tensor(labels)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 7), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_ece_is_its_definition(seed, images, classes, bins):
    logits, labels = sample(seed, images, classes)
    expected = plain_ece(logits, labels, bins)
    assert expected_calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-9)


def test_the_error_is_the_mean_over_the_intervals_of_a_diagram():
    logits, labels = sample(3)
    confidence, predictions = logits.softmax(-1).max(-1)
    found = reliability(confidence, predictions == labels, 10)
    assert found.images.sum() == len(labels) and found.accuracy[found.images == 0].isnan().all()
    gaps = (found.accuracy - found.confidence).abs().nan_to_num() * found.images
    expected = error_of_confidences(confidence, predictions == labels, 10)
    assert 100 * float(gaps.sum()) / len(labels) == pytest.approx(expected, abs=1e-9)


def test_ece_by_hand_and_an_edge_belongs_to_the_interval_below():
    confidence = torch.tensor([0.5, 0.5, 0.5, 1.0])  # with two intervals: (0, 0.5] and (0.5, 1]
    hits = torch.tensor([True, False, False, False])
    # three images: 1/3 right at 0.5; one image: wrong at 1.0
    assert error_of_confidences(confidence, hits, 2) == pytest.approx(
        100 * (3 * (0.5 - 1 / 3) + 1) / 4
    )
    assert error_of_confidences(torch.ones(4), torch.ones(4)) == 0
    assert math.isnan(error_of_confidences(torch.tensor([0.5, math.nan]), hits[:2]))


@given(st.integers(0, 10**6), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_neither_the_order_of_images_nor_a_constant_changes_anything(seed, constant):
    logits, labels = sample(seed, 60)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(60))
    for figure in (expected_calibration_error, fit_temperature):
        moved = figure(logits[order] + constant, labels[order])
        assert moved == pytest.approx(figure(logits, labels), rel=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 7))
@settings(max_examples=6, deadline=None)
def test_the_temperature_has_the_smallest_nll(seed, classes):
    logits, labels = sample(seed, 50, classes)
    found = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(*map(math.log, TEMPERATURES), 1501))  # steps of 1 %
    best = grid[np.argmin([plain_nll(logits, labels, t) for t in grid])]
    assert found == pytest.approx(best, rel=0.01)
    assert plain_nll(logits, labels, found) <= plain_nll(logits, labels, best) + 1e-12


def test_the_temperature_undoes_a_scale():
    logits, labels = sample(0, 8000)  # labels are drawn at temperature 2
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2, rel=0.05)
    assert fit_temperature(100 * logits, labels) == pytest.approx(100 * found, rel=1e-6)
    before = expected_calibration_error(logits, labels)
    assert expected_calibration_error(logits / found, labels) < 1.5 < 5 < before


def test_temperatures_without_a_minimum():
    logits = torch.tensor([[5.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    right, wrong = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])
    low, high = TEMPERATURES
    assert fit_temperature(logits, right) == pytest.approx(low)
    assert fit_temperature(1e6 * logits, right) == pytest.approx(low)  # the slope underflows
    assert fit_temperature(logits, wrong) == pytest.approx(high)
    assert fit_temperature(torch.ones(3, 2), right) == 1
    assert fit_temperature(torch.randn(3, 1), torch.tensor([0, 0, 0])) == 1  # one class


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_count_as_what_they_are(dtype):
    logits, labels = sample(1, 200)
    probabilities = logits.softmax(-1).to(dtype)
    near = {"rel": 20 * torch.finfo(dtype).eps, "abs": 150 * torch.finfo(dtype).eps}
    for figure in (expected_calibration_error, fit_temperature):
        assert figure(probabilities, labels) == pytest.approx(figure(logits, labels), **near)
    sure = torch.eye(5)[labels]  # zeros among the probabilities
    assert expected_calibration_error(sure, labels) == 0
    assert fit_temperature(sure, (labels + 1) % 5) == pytest.approx(TEMPERATURES[1])


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_by_batch_is_the_whole(dtype, probabilities):
    logits, labels = sample(2, 120)
    scores = (logits.softmax(-1) if probabilities else logits).to(dtype)
    scaling = Scaling.fitted(scores[:60], labels[:60])
    confidences = Confidences(scaling)
    for part in scores[60:].split(7):
        confidences.add(part)
    found = confidences.figures(scores[60:].max(1)[1] == labels[60:])
    kept = scores[60:].double()
    kept = kept.clamp_min(1e-30).log() if probabilities else kept
    assert found["temperature"] == scaling.temperature != 1
    assert found["ece"] == pytest.approx(plain_ece(kept, labels[60:]), abs=0.05)
    scaled = plain_ece(kept / scaling.temperature, labels[60:])
    assert found["ece_scaled"] == pytest.approx(scaled, abs=0.05)


def test_a_batch_that_looks_like_probabilities_among_logits():
    """Cosines of one image may sum to 1 by accident: the whole split decides."""
    scores = torch.tensor([[0.25, 0.75], [0.9, 0.3]])
    hits = torch.tensor([True, True])
    confidences = Confidences(Scaling(2.0, of_probabilities=True))
    for row in scores:
        confidences.add(row[None])
    expected = plain_ece(scores.double(), [1, 0])
    assert confidences.figures(hits) == {"ece": pytest.approx(expected, abs=1e-4)}


@pytest.mark.parametrize(
    ("shape", "labels", "said"),
    [
        ((0, 3), [], "0 images"),
        ((2, 0), [0, 0], "0 classes"),
        ((2, 3), [0], r"labels must be \(2,\)"),
        ((2, 3), [0, 3], r"0\.\.2"),
        ((2, 3), [-1, 0], r"0\.\.2"),
        ((3,), [0, 0, 0], r"\(N, K\)"),
    ],
)
def test_wrong_input_is_a_sentence(shape, labels, said):
    labels = torch.tensor(labels, dtype=torch.long)
    for figure in (expected_calibration_error, fit_temperature):
        with pytest.raises(NPTError, match=said):
            figure(torch.zeros(shape), labels)


def test_logits_that_are_not_finite_and_no_bins():
    logits, labels = torch.tensor([[1.0, math.inf], [0.0, 1.0]]), torch.tensor([0, 1])
    with pytest.raises(NPTError, match="finite"):
        fit_temperature(logits, labels)
    assert math.isnan(expected_calibration_error(logits, labels))
    with pytest.raises(NPTError, match="bins"):
        expected_calibration_error(torch.eye(2) * 3, labels, bins=0)
