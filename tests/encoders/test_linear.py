"""Which implementation computes the frozen linear layers, and that all give the same values."""

import pytest
import torch
import torch.nn.functional as F
from clip_recipe import random_clip, random_prompts

from npt.encoders import TextEncoder, build_encoders, linear
from npt.encoders.packing import place_context
from npt.errors import NPTError

X = torch.linspace(-1, 1, 6 * 300).view(6, 300)
BIAS, RESIDUAL = torch.linspace(-1, 1, 400), torch.linspace(0, 2, 6 * 400).view(6, 400)


def weight(way="auto", shape=(400, 300)):
    w = torch.nn.Parameter(torch.sin(torch.arange(shape[0] * shape[1])).view(shape) / 9, False)
    linear.choose([w], way)
    return w


@pytest.fixture
def bfloat16_works(monkeypatch):
    """As on a processor with units for bfloat16."""
    monkeypatch.setattr(linear, "onednn_works", lambda dtype: True)


@pytest.fixture
def onednn():
    if not linear.onednn_works(torch.float32):
        pytest.skip("this torch has no linear layers of oneDNN")


@pytest.mark.parametrize(
    "way, dtype, shape, taken",
    [
        ("auto", torch.float32, (400, 300), False),
        ("auto", torch.bfloat16, (400, 300), True),
        ("auto", torch.bfloat16, (400, 128), False),
        ("auto", torch.bfloat16, (64, 300), False),
        ("auto", torch.float16, (400, 300), False),
        ("torch", torch.bfloat16, (400, 300), False),
        ("onednn", torch.float32, (400, 300), True),
        ("onednn", torch.bfloat16, (64, 64), True),
    ],
)
def test_the_rule(way, dtype, shape, taken, bfloat16_works):
    assert linear.use_onednn(weight(way, shape), dtype) == taken


def test_without_units_for_bfloat16_auto_takes_torch(monkeypatch):
    monkeypatch.setattr(linear, "onednn_works", lambda dtype: False)
    assert not linear.use_onednn(weight(), torch.bfloat16)
    with pytest.raises(NPTError, match=r"MODEL.LINEAR is onednn.*bfloat16 on cpu"):
        linear.laid_out(weight("onednn"), torch.bfloat16)


def test_onednn_is_refused_for_types_that_it_does_not_have():
    with pytest.raises(NPTError, match=r"MODEL.LINEAR is onednn.*float64 on cpu"):
        linear.laid_out(weight("onednn"), torch.float64)


@pytest.mark.parametrize("rows", [slice(None), slice(100, 300)])
def test_both_ways_give_the_same_values(rows, onednn):
    for more in ({}, {"residual": RESIDUAL[:, rows]}, {"silu": True}):
        torch_s, onednn_s = (
            linear.affine(X, linear.laid_out(weight(way), torch.float32, rows), BIAS[rows], **more)
            for way in ("torch", "onednn")
        )
        expected = F.linear(X, weight()[rows], BIAS[rows])
        expected = expected + RESIDUAL[:, rows] if "residual" in more else expected
        expected = F.silu(expected) if "silu" in more else expected
        torch.testing.assert_close(torch_s, expected)
        torch.testing.assert_close(onednn_s, expected, rtol=1e-4, atol=1e-4)
    for way in ("torch", "onednn"):
        back = linear.laid_out(weight(way), torch.float32, rows, transposed=True)
        result = linear.affine(RESIDUAL[:, rows].contiguous(), back)
        torch.testing.assert_close(result, RESIDUAL[:, rows] @ weight()[rows], rtol=1e-4, atol=1e-4)


def test_copies_are_counted_and_few(onednn):
    def copied(way, dtype):
        w = weight(way)
        for rows in (slice(None), slice(0, 100)):
            for transposed in (False, True):
                linear.laid_out(w, dtype, rows, transposed)
        return linear.laid_out_bytes([w])

    size = 400 * 300
    assert copied("torch", torch.float32) == 0
    assert copied("torch", torch.bfloat16) == 2 * size  # one, whatever rows and direction
    assert copied("onednn", torch.float32) >= 2 * 4 * size


def test_two_models_in_one_process_keep_their_own_ways(onednn):
    prompts, ctx = place_context(random_prompts(1, [1, 2, 3], 2), 2), torch.randn(2, 64)
    models = {way: random_clip(0) for way in ("auto", "onednn")}
    encoders = {way: build_encoders(m, prompts, linear=way)[0] for way, m in models.items()}
    features = {way: encoder(ctx) for way, encoder in encoders.items()}
    torch.testing.assert_close(features["auto"], features["onednn"], rtol=1e-4, atol=1e-4)
    copied = {way: linear.laid_out_bytes(m.parameters()) for way, m in models.items()}
    assert copied["auto"] == 0 < copied["onednn"]


def test_float32_takes_no_copy_of_a_weight():
    model = random_clip(0)
    encoder = TextEncoder(model, place_context(random_prompts(1, [1, 2, 3], 2), 2))
    encoder(torch.randn(2, 64, requires_grad=True)).sum().backward()
    assert linear.laid_out_bytes(model.parameters()) == 0
