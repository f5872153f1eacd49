"""Bounded memory: classes in chunks, and steps cut where the memory there is would not do."""

import pytest
import torch
from clip_recipe import random_clip, random_prompts

from npt.encoders import TextEncoder, blocks, memory, text
from npt.encoders.packing import place_context

LENGTHS = [1 + k % 4 for k in range(60)]


def prompts():
    return place_context(random_prompts(1, LENGTHS, 2), 2)


def step(encoder, ctx):
    """Features, the gradient of ctx, and the bytes kept for backward."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ctx = ctx.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(ctx)
    features.square().sum().backward()
    return features.detach(), ctx.grad, sum(kept.values())


@pytest.mark.parametrize("shape", [(2, 64), (3, 1, 2, 64)])
def test_chunks_keep_less_and_change_nothing(shape):
    model, ctx = random_clip(0), torch.randn(shape)
    features, grad, kept = step(TextEncoder(model, prompts()), ctx)
    chunked = TextEncoder(model, prompts(), class_chunk=20)
    assert len(chunked.chunks) == 3
    again_features, again_grad, again_kept = step(chunked, ctx)
    torch.testing.assert_close(again_features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again_grad, grad, rtol=1e-4, atol=1e-4)
    assert again_kept < kept / 10


def test_the_estimate_is_close_to_what_is_kept():
    model, ctx = random_clip(0, layers=6), torch.randn(4, 1, 2, 64)
    encoder = TextEncoder(model, prompts())
    _, _, kept = step(encoder, ctx)
    estimate = 4 * encoder.n_tokens * encoder.token_bytes
    assert 0.7 * kept < estimate < 1.6 * kept


def test_little_memory_cuts_the_step(monkeypatch):
    model, ctx = random_clip(0), torch.randn(3, 1, 2, 64)
    features, grad, kept = step(TextEncoder(model, prompts()), ctx)
    encoder = TextEncoder(model, prompts())
    needed = 3 * encoder.n_tokens * encoder.token_bytes
    monkeypatch.setattr(text, "free_bytes", lambda device: needed)
    small = TextEncoder(model, prompts())
    assert len(small.chunks) > 1
    for enc in (encoder, small):
        again_features, again_grad, again_kept = step(enc, ctx)
        torch.testing.assert_close(again_features, features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again_grad, grad, rtol=1e-4, atol=1e-4)
        assert again_kept < kept / 10


def test_without_backward_images_come_in_portions(monkeypatch):
    model, ctx = random_clip(0), torch.randn(5, 1, 2, 64)
    encoder = TextEncoder(model, prompts())
    with torch.no_grad():
        whole = encoder(ctx)
        monkeypatch.setattr(text, "AT_ONCE", 2 * encoder.n_tokens)
        seen = []
        monkeypatch.setattr(
            text,
            "run_layers",
            lambda *args: (seen.append(len(args[2][0])), blocks.run_layers(*args))[1],
        )
        torch.testing.assert_close(encoder(ctx), whole, rtol=1e-5, atol=1e-5)
    assert seen == [2, 2, 1]


def test_free_memory_of_this_machine_is_a_figure():
    free = memory.free_bytes(torch.device("cpu"))
    assert free > 2**20


@pytest.mark.parametrize("name", ["mlp.c_fc.weight", "attn.in_proj_weight", "attn.out_proj.weight"])
def test_a_changed_weight_is_laid_out_anew(name):
    model, ctx = random_clip(4), torch.randn(2, 64)
    encoder = TextEncoder(model, prompts())
    before, _, _ = step(encoder, ctx)
    with torch.no_grad():
        dict(model.transformer.resblocks[1].named_parameters())[name].mul_(1.5)
    features, grad, _ = step(encoder, ctx)
    assert not torch.allclose(features, before)
    fresh = random_clip(4)
    fresh.load_state_dict(model.state_dict())
    expected, expected_grad, _ = step(TextEncoder(fresh, prompts()), ctx)
    assert torch.equal(features, expected) and torch.equal(grad, expected_grad)


def test_weights_that_learn_are_refused():
    model = random_clip(4).requires_grad_(True)
    with pytest.raises(Exception, match="requires_grad_"):
        TextEncoder(model, prompts())(torch.randn(2, 64))
