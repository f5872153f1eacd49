"""Bounded memory: chunks of classes, recomputation when memory is short, and cached weights."""

import gc

import pytest
import torch
from clip_recipe import random_clip, random_prompts

from npt.encoders import TextEncoder, blocks, linear, memory, text
from npt.encoders.packing import place_context
from npt.errors import NPTError

LENGTHS = [1 + k % 4 for k in range(60)]


def prompts():
    return place_context(random_prompts(1, LENGTHS, 2), 2)


def laid_out(model):
    """The model, with its linear layers in oneDNN."""
    if not linear.onednn_works(torch.float32):
        pytest.skip("this torch has no linear layers of oneDNN")
    linear.choose(model.parameters(), "onednn")
    return model


def step(encoder, ctx):
    """Features, the gradient of ctx, and the bytes that autograd saved for backward."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ctx = ctx.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(ctx)
    features.square().sum().backward()
    return features.detach(), ctx.grad, sum(kept.values())


def assert_close_as_a_whole(new, reference):
    """Values near 0 are sums of large ones, and their own relative error says nothing."""
    assert (new - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.parametrize("shape", [(2, 64), (3, 1, 2, 64)])
def test_chunks_save_memory_and_change_no_value(shape):
    model, ctx = random_clip(0), torch.randn(shape)
    features, grad, kept = step(TextEncoder(model, prompts()), ctx)
    chunked = TextEncoder(model, prompts(), class_chunk=20)
    assert len(chunked.chunks) == 3
    again_features, again_grad, again_kept = step(chunked, ctx)
    torch.testing.assert_close(again_features, features, rtol=1e-5, atol=1e-5)
    assert_close_as_a_whole(again_grad, grad)
    assert again_kept < kept / 10


@pytest.mark.parametrize("n, specific", [(2, False), (16, False), (4, True), (16, True)])
def test_kept_bytes_is_close_to_the_measured_bytes(n, specific):
    model = random_clip(0, layers=6)
    texts = place_context(random_prompts(1, LENGTHS, n), n, class_specific=specific)
    encoder = TextEncoder(model, texts)
    shape = (len(LENGTHS), n, 64) if specific else (4, 1, n, 64)
    _, _, kept = step(encoder, torch.randn(shape))
    estimate = encoder.kept_bytes * (1 if specific else 4)
    assert 0.8 * kept < estimate < 1.3 * kept


def test_little_memory_leads_to_chunks_and_recomputation(monkeypatch):
    model, ctx = random_clip(0), torch.randn(3, 1, 2, 64)
    features, grad, kept = step(TextEncoder(model, prompts()), ctx)
    encoder = TextEncoder(model, prompts())
    monkeypatch.setattr(text, "free_bytes", lambda device: encoder.kept_bytes)
    monkeypatch.setattr(text, "MIN_CHUNK", 4)
    small = TextEncoder(model, prompts())
    assert len(small.chunks) > 1
    for enc in (encoder, small):
        again_features, again_grad, again_kept = step(enc, ctx)
        torch.testing.assert_close(again_features, features, rtol=1e-5, atol=1e-5)
        assert_close_as_a_whole(again_grad, grad)
        assert again_kept < kept / 10


def test_without_gradients_images_are_encoded_in_batches(monkeypatch):
    model, ctx = random_clip(0), torch.randn(5, 1, 2, 64)
    encoder = TextEncoder(model, prompts())
    with torch.no_grad():
        whole = encoder(ctx)
        monkeypatch.setattr(text, "TOKENS_PER_PASS", 2 * encoder.chunks[0].n_tokens)
        seen = []
        monkeypatch.setattr(
            text,
            "run_layers",
            lambda *args: (seen.append(len(args[2][0])), blocks.run_layers(*args))[1],
        )
        torch.testing.assert_close(encoder(ctx), whole, rtol=1e-5, atol=1e-5)
    assert seen == [2, 2, 1]


def test_free_memory_of_this_machine_is_found():
    free = memory.free_bytes(torch.device("cpu"))
    assert free > 2**20


@pytest.mark.parametrize(
    "folder, limit, used, cached",
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_free_memory_in_a_container(folder, limit, used, cached, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    cpu = torch.device("cpu")
    assert memory.free_bytes(cpu) == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    assert memory.free_bytes(cpu) == 5000 * 1024
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / limit).write_text("4000000\n")
    (group / used).write_text("3900000\n")
    assert memory.free_bytes(cpu) == 100_000
    (group / "memory.stat").write_text(f"anon 5\n{cached} 1000000\n")
    assert memory.free_bytes(cpu) == 1_100_000
    (group / used).write_text("9000000\n")
    assert memory.free_bytes(cpu) == 0


@pytest.mark.parametrize("name", ["mlp.c_fc.weight", "attn.in_proj_weight", "attn.out_proj.weight"])
def test_a_changed_weight_is_converted_again(name):
    model, ctx = laid_out(random_clip(4)), torch.randn(2, 64)
    encoder = TextEncoder(model, prompts())
    before, _, _ = step(encoder, ctx)
    with torch.no_grad():
        dict(model.transformer.resblocks[1].named_parameters())[name].mul_(1.5)
    features, grad, _ = step(encoder, ctx)
    assert not torch.allclose(features, before)
    fresh = laid_out(random_clip(4))
    fresh.load_state_dict(model.state_dict())
    expected, expected_grad, _ = step(TextEncoder(fresh, prompts()), ctx)
    assert torch.equal(features, expected) and torch.equal(grad, expected_grad)


@pytest.mark.parametrize("layer", [0, -1])
def test_weights_that_require_gradients_are_an_error(layer):
    model = random_clip(4)
    model.transformer.resblocks[layer].requires_grad_(True)
    with pytest.raises(NPTError, match="requires_grad_"):
        TextEncoder(model, prompts())(torch.randn(2, 64))


def test_training_works_after_inference_mode():
    ctx = torch.randn(2, 64)
    expected = step(TextEncoder(random_clip(4), prompts()), ctx)
    with torch.inference_mode():
        encoder = TextEncoder(random_clip(4), prompts())
        encoder(ctx)
    model = random_clip(4)
    trained = TextEncoder(model, prompts())
    with torch.inference_mode():
        trained(ctx)
    with torch.no_grad():
        trained(ctx).sum().add_(1)
    for one, other in zip(step(trained, ctx), expected, strict=True):
        assert one == other if isinstance(one, int) else torch.equal(one, other)


def test_converted_weights_are_freed_with_the_weights_and_not_saved(tmp_path):
    gc.collect()
    before = len(linear._copies)
    model = laid_out(random_clip(4))
    step(TextEncoder(model, prompts()), torch.randn(2, 64))
    assert len(linear._copies) > before
    weight = model.transformer.resblocks[0].mlp.c_fc.weight
    torch.save(weight, tmp_path / "weight.pt")
    assert torch.equal(torch.load(tmp_path / "weight.pt", weights_only=True), weight)
    del model, weight
    gc.collect()
    assert len(linear._copies) == before
