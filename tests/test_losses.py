"""The regularisers against plain loops, and the properties that the paper's formulas have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.geometry import simplex_etf
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss

SHAPES = st.tuples(st.integers(2, 7), st.integers(1, 9), st.integers(0, 10_000))
LENGTHS = st.floats(0.1, 4.0)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_for(batch, num_classes, seed=0):
    return torch.randint(num_classes, (batch,), generator=torch.Generator().manual_seed(seed))


def lc_by_hand(text, e_w):
    """Eq. 5 as printed, pair by pair: (K, D) -> float."""
    total, mu = 0.0, -1 / (len(text) - 1)
    g = [row / row.norm() * math.sqrt(e_w) for row in text.double()]
    for i in range(len(g)):
        for j in range(len(g)):
            if i != j:
                total += (float(g[i] @ g[j]) - e_w * mu) ** 2
    return total


def mi_by_hand(image, text, labels, e_w, e_h):
    """Eq. 6 as printed, image by image."""
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        row = (text[i] if text.dim() == 3 else text)[label].double()
        z = image[i].double() / image[i].double().norm() * math.sqrt(e_h)
        total += (float(z @ (row / row.norm())) * math.sqrt(e_w) - math.sqrt(e_w * e_h)) ** 2
    return total


@given(SHAPES, LENGTHS)
@settings(deadline=None, max_examples=30)
def test_language_collapse_is_equation_5(shape, e_w):
    k, d, seed = shape
    text = draw(k, d, seed=seed)
    expected = lc_by_hand(text, e_w)
    close = {"rel": 1e-4, "abs": 1e-5}
    assert float(language_collapse_loss(text, e_w, "sum")) == pytest.approx(expected, **close)
    assert float(language_collapse_loss(text, e_w, "class")) == pytest.approx(expected / k, **close)
    mean = float(language_collapse_loss(text, e_w))
    assert mean == pytest.approx(expected / (k * (k - 1)), **close)


@given(SHAPES, st.integers(1, 5), LENGTHS, LENGTHS, st.booleans())
@settings(deadline=None, max_examples=30)
def test_multimodal_isomorphism_is_equation_6(shape, batch, e_w, e_h, per_image):
    k, d, seed = shape
    text = draw(batch, k, d, seed=seed) if per_image else draw(k, d, seed=seed)
    image, labels = draw(batch, d, seed=seed + 1), labels_for(batch, k, seed)
    expected = mi_by_hand(image, text, labels, e_w, e_h)
    for reduction, share in [("sum", 1), ("mean", batch), ("class", batch)]:
        loss = multimodal_isomorphism_loss(image, text, labels, e_w, e_h, reduction)
        assert float(loss) == pytest.approx(expected / share, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "class", "sum"])
def test_texts_of_each_image_are_averaged_over_the_batch(reduction):
    text = draw(3, 5, 8)
    each = torch.stack([language_collapse_loss(t, 1.0, reduction) for t in text])
    torch.testing.assert_close(language_collapse_loss(text, 1.0, reduction), each.mean())


@given(st.integers(2, 12), st.integers(0, 5), st.integers(0, 99), LENGTHS)
@settings(deadline=None, max_examples=25)
def test_a_simplex_etf_has_no_loss(k, more, seed, e_w):
    etf = simplex_etf(k, k - 1 + more, seed, dtype=torch.float64)
    labels = torch.arange(k)
    assert float(language_collapse_loss(etf, e_w, "sum")) < 1e-20
    assert float(multimodal_isomorphism_loss(3 * etf, etf, labels, e_w, 2.0, "sum")) < 1e-20
    assert float(language_collapse_loss(etf.float(), e_w)) < 1e-10


@given(SHAPES)
@settings(deadline=None, max_examples=20)
def test_order_rotation_and_lengths_do_not_matter(shape):
    k, d, seed = shape
    text, image = draw(k, d, seed=seed, dtype=torch.float64), draw(4, d, seed=seed + 1).double()
    labels = labels_for(4, k, seed)
    rotation, _ = torch.linalg.qr(draw(d, d, seed=seed + 2, dtype=torch.float64))
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    lengths = draw(k, 1, seed=seed + 3, dtype=torch.float64).exp()
    lc = language_collapse_loss(text)
    mi = multimodal_isomorphism_loss(image, text, labels)
    moved = (text * lengths @ rotation)[order]
    new_labels = order.argsort()[labels]
    torch.testing.assert_close(language_collapse_loss(moved), lc)
    moved_images = 0.1 * image @ rotation
    torch.testing.assert_close(multimodal_isomorphism_loss(moved_images, moved, new_labels), mi)


@pytest.mark.parametrize("reduction", ["mean", "class", "sum"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)])
def test_gradients_agree_with_finite_differences(shape, reduction):
    text = draw(*shape, dtype=torch.float64).requires_grad_()
    image = draw(3, 6, seed=1, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([4, 0, 4])
    assert torch.autograd.gradcheck(lambda t: language_collapse_loss(t, 1.5, reduction), text)
    assert torch.autograd.gradcheck(
        lambda z, t: multimodal_isomorphism_loss(z, t, labels, 1.5, 0.7, reduction), (image, text)
    )


def test_descent_from_random_texts_reaches_the_simplex():
    text = draw(6, 16).requires_grad_()
    optimizer = torch.optim.SGD([text], lr=10.0)
    for _ in range(500):
        optimizer.zero_grad()
        language_collapse_loss(text, reduction="class").backward()
        optimizer.step()
    assert language_collapse_loss(text).item() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_give_the_float32_result(dtype):
    text, image, labels = draw(9, 64).to(dtype), draw(4, 64, seed=1).to(dtype), labels_for(4, 9)
    lc = language_collapse_loss(text, reduction="sum")
    mi = multimodal_isomorphism_loss(image, text, labels)
    assert lc.dtype == mi.dtype == torch.float32
    assert torch.equal(lc, language_collapse_loss(text.float(), reduction="sum"))
    assert torch.equal(mi, multimodal_isomorphism_loss(image.float(), text.float(), labels))


def test_the_printed_sum_over_many_classes_fits_though_half_would_not():
    loss = language_collapse_loss(torch.ones(500, 8, dtype=torch.float16), reduction="sum")
    assert float(loss) == pytest.approx(500 * 499 * (1 + 1 / 499) ** 2, rel=1e-5)


def test_autocast_around_does_not_reach_inside():
    text, image, labels = draw(9, 64), draw(4, 64, seed=1), labels_for(4, 9)
    plain = language_collapse_loss(text), multimodal_isomorphism_loss(image, text, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = language_collapse_loss(text), multimodal_isomorphism_loss(image, text, labels)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: language_collapse_loss(draw(1, 4)), "at least two classes"),
        (lambda: language_collapse_loss(draw(4)), r"\(K, D\) or \(B, K, D\)"),
        (lambda: language_collapse_loss(draw(3, 4), 0.0), "e_w must be a positive"),
        (lambda: language_collapse_loss(draw(3, 4), float("nan")), "e_w must be a positive"),
        (lambda: language_collapse_loss(draw(3, 4), 1.0, "average"), "mean, class, sum"),
    ],
)
def test_language_collapse_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("image", "text", "labels", "words"),
    [
        (draw(2, 4), draw(3, 5), torch.tensor([0, 1]), "4 dimensions and text_features 5"),
        (draw(2, 4), draw(3, 3, 4), torch.tensor([0, 1]), "texts of 3 images"),
        (draw(2, 4), draw(3, 4), torch.tensor([0, 1, 2]), r"labels must be \(2,\)"),
        (draw(2, 4), draw(3, 4), torch.tensor([0, 3]), r"0\.\.2"),
        (draw(2, 4), draw(3, 4), torch.tensor([-1, 0]), r"0\.\.2"),
        (draw(2, 4), draw(3, 4), torch.tensor([0.0, 1.0]), "class indices"),
        (draw(2, 4), draw(1, 4), torch.tensor([0, 0]), "at least two classes"),
        (draw(4), draw(3, 4), torch.tensor([0]), r"image_features must be \(B, D\)"),
    ],
)
def test_multimodal_isomorphism_refuses(image, text, labels, words):
    with pytest.raises(ValueError, match=words):
        multimodal_isomorphism_loss(image, text, labels)


def test_multimodal_isomorphism_refuses_lengths():
    image, text, labels = draw(2, 4), draw(3, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="e_h must be a positive"):
        multimodal_isomorphism_loss(image, text, labels, 1.0, -1.0)
