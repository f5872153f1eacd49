"""The fast encoders return the features and gradients of the reference encoders."""

import clip
import pytest
import torch
from clip_recipe import half_runs_on_cpu, random_clip, random_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.encoders import ClassPrompts, ImageEncoder, TextEncoder, linear, plain
from npt.encoders.packing import place_context
from npt.errors import NPTError

FEW = settings(max_examples=25, deadline=None)


# float64 shows that two ways give the same values. In float32 each of them rounds: their gradients
# were up to 1.9e-5 apart in some thousand examples.
EXACT = {torch.float32: 3e-5, torch.float64: 1e-11}


@pytest.fixture(autouse=True)
def norms_in_their_own_precision(monkeypatch):
    """Without CLIP's rounding to float32, so that float64 results are exact to float64."""
    monkeypatch.setattr(clip.model.LayerNorm, "forward", torch.nn.LayerNorm.forward)


def close(new, reference, tolerance=None):
    """The norm of the difference is at most `tolerance` times the norm of the reference."""
    tolerance = tolerance or EXACT[reference.dtype]
    assert new.shape == reference.shape
    assert (new - reference).norm() <= tolerance * reference.norm().clamp(min=1e-6)


def gradients(features, prompts, weights):
    loss = (torch.nn.functional.normalize(features, dim=-1) * weights).sum()
    return torch.autograd.grad(loss, prompts, allow_unused=True)


def compare(fast, slow, prompts, generator):
    weights = torch.randn(slow.shape, generator=generator, dtype=slow.dtype)
    close(fast, slow)
    pairs = zip(gradients(fast, prompts, weights), gradients(slow, prompts, weights), strict=True)
    for new, reference in pairs:
        assert (new is None) == (reference is None)
        if reference is not None:
            close(new, reference)


@FEW
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=7),
    n=st.integers(1, 5),
    words=st.integers(0, 2),
    kind=st.sampled_from(["shared", "specific", "image", "both"]),
    where=st.sampled_from(["end", "middle", "front"]),
    depth=st.integers(0, 4),
    group=st.sampled_from([1, 3, 8, 32]),
    chunk=st.sampled_from([0, 1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_text(seed, lengths, n, words, kind, where, depth, group, chunk, dtype):
    model = random_clip(seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    tokens = random_prompts(seed, lengths, n, words)
    specific = kind in ("specific", "both")
    name_lengths = [length + words for length in lengths]
    texts = place_context(tokens, n, where, name_lengths, specific)
    k = len(lengths)
    shape = {
        "shared": (n, 64), "specific": (k, n, 64), "image": (2, 1, n, 64), "both": (2, k, n, 64)
    }[kind]  # fmt: skip
    prompts = [
        torch.randn(s, generator=generator, dtype=dtype) for s in (shape, *[(n, 64)] * depth)
    ]
    prompts = [p.requires_grad_() for p in prompts]
    encoder = TextEncoder(model, texts, chunk, group)
    fast = encoder(prompts[0], prompts[1:])
    slow = plain.text_features(model, texts, prompts[0], prompts[1:])
    compare(fast, slow, prompts, generator)
    with torch.no_grad():
        close(encoder(prompts[0], prompts[1:]), slow)


@FEW
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    n=st.integers(1, 4),
    depth=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_image(seed, batch, n, depth, dtype):
    model = random_clip(seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, 16, 16, generator=generator, dtype=dtype)
    prompts = [torch.randn(n, 64, generator=generator, dtype=dtype) for _ in range(depth + 1)]
    prompts = [p.requires_grad_() for p in prompts]
    fast = ImageEncoder(model.visual)(image, prompts[0], prompts[1:])
    slow = plain.image_features(model.visual, image, prompts[0], prompts[1:])
    compare(fast, slow, prompts, generator)


def test_without_prompts_equals_clip_itself():
    model = random_clip(3)
    image = torch.randn(4, 3, 16, 16)
    tokens = random_prompts(0, [1, 3, 2], 0)
    with torch.enable_grad():
        images = ImageEncoder(model.visual)(image)
        texts = TextEncoder(model, ClassPrompts(tokens))()
    close(images, model.encode_image(image))
    close(texts, model.encode_text(tokens))
    assert images.grad_fn is None and texts.grad_fn is None


@pytest.mark.parametrize("layers", [1, 2])
def test_few_layers(layers):
    model = random_clip(9, layers=layers)
    texts = place_context(random_prompts(3, [2, 1, 3], 2), 2)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(2, 64, generator=generator).requires_grad_() for _ in range(2)]
    fast = TextEncoder(model, texts)(prompts[0], prompts[1:])
    slow = plain.text_features(model, texts, prompts[0], prompts[1:])
    compare(fast, slow, prompts, generator)


@pytest.mark.skipif(
    torch.__version__.startswith("2.1."), reason="CLIP's own attention refuses autocast here"
)
def test_gradients_in_bfloat16_are_as_good_as_the_plain_ones():
    lengths = [1 + k % 5 for k in range(150)]
    texts = place_context(random_prompts(2, lengths, 4), 4)
    ctx, weights = torch.randn(4, 64), torch.randn(150, 32)

    def gradient(features, prompt):
        (torch.nn.functional.normalize(features.float(), dim=-1) * weights).sum().backward()
        return prompt.grad

    model = random_clip(11)
    prompt = ctx.clone().requires_grad_()
    exact = gradient(plain.text_features(model, texts, prompt), prompt)
    errors = []
    for encode in (TextEncoder(model, texts), lambda p: plain.text_features(model, texts, p)):
        prompt = ctx.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            features = encode(prompt)
        errors.append((gradient(features, prompt) - exact).norm() / exact.norm())
    assert errors[0] < 1.3 * errors[1]


def test_many_classes_need_several_groups():
    model = random_clip(1)
    tokens = random_prompts(2, [1 + k % 5 for k in range(60)], 2)
    texts = place_context(tokens, 2)
    encoder = TextEncoder(model, texts)
    assert encoder.chunks[0].groups > 1
    ctx = torch.randn(3, 1, 2, 64, requires_grad=True)
    slow = plain.text_features(model, texts, ctx)
    compare(encoder(ctx), slow, [ctx], torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lengths", [[69] * 3, [1, 69]])
def test_long_prompts(lengths):
    model = random_clip(5)
    texts = place_context(random_prompts(3, lengths, 4), 4)
    ctx = torch.randn(4, 64)
    close(TextEncoder(model, texts)(ctx), plain.text_features(model, texts, ctx))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_follows_float32(dtype):
    if dtype == torch.float16 and not half_runs_on_cpu():
        pytest.skip("this torch has no float16 on the CPU")
    model = random_clip(11)
    texts = place_context(random_prompts(3, [2, 1, 3], 2), 2)
    ctx, image = torch.randn(2, 64), torch.randn(2, 3, 16, 16)
    visual = torch.randn(2, 64)
    text = TextEncoder(model, texts)(ctx)
    features = ImageEncoder(model.visual)(image, visual)
    half = random_clip(11)
    for module in half.modules():  # as CLIP's convert_weights: LayerNorm stays in float32
        if not isinstance(module, torch.nn.LayerNorm):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)
    low = TextEncoder(half, texts)(ctx)
    low_image = ImageEncoder(half.visual)(image, visual)
    assert low.dtype == low_image.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    close(low.float(), text, tolerance)
    close(low_image.float(), features, tolerance)


def test_autocast():
    model = random_clip(11)
    texts = place_context(random_prompts(3, [2, 1, 3], 2), 2)
    ctx = torch.randn(2, 64, requires_grad=True)
    visual, image = torch.randn(2, 64, requires_grad=True), torch.randn(2, 3, 16, 16)
    encoder, images = TextEncoder(model, texts), ImageEncoder(model.visual)
    exact, exact_image = encoder(ctx), images(image, visual)
    linear.onednn_works.cache_clear()  # its first call is then inside autocast
    with torch.autocast("cpu", torch.bfloat16):
        text, features = encoder(ctx), images(image, visual)
    assert text.dtype == features.dtype == torch.bfloat16
    close(text.float(), exact, 0.1)
    close(features.float(), exact_image, 0.1)
    (text.float().sum() + features.float().sum()).backward()
    assert ctx.grad.dtype == visual.grad.dtype == torch.float32


def test_text_features_are_cached_until_prompts_or_weights_change():
    model = random_clip(2)
    texts = place_context(random_prompts(3, [2, 1, 3], 2), 2)
    encoder = TextEncoder(model, texts)
    seen, computed = [], []
    encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    encoder.chunks[0].register_forward_hook(lambda *args: computed.append(args))
    ctx, deep = torch.nn.Parameter(torch.randn(2, 64)), torch.randn(2, 64)
    with torch.no_grad():
        first = encoder(ctx, [deep])
        assert torch.equal(encoder(ctx.clone(), [deep.clone()]), first)
        assert len(seen) == 2 and len(computed) == 1
        encoder(ctx, [deep]).mul_(2)  # the result is a copy of the cached features
        assert torch.equal(encoder(ctx, [deep]), first)
        ctx.data[0, 0] += 1  # a change that the version counter does not show
        second = encoder(ctx, [deep])
        assert not torch.equal(first, second)
        assert encoder(ctx, []) is not second
        close(encoder(ctx, [deep]), second)
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(ctx, [deep]).dtype == torch.bfloat16
        third = encoder(ctx, [deep])
        model.text_projection.mul_(2)
        close(encoder(ctx, [deep]), 2 * third)
    assert encoder(ctx, [deep]).requires_grad


def test_contexts_of_another_shape_are_an_error():
    model = random_clip(2)
    texts = place_context(random_prompts(3, [2, 1, 3], 2), 2)
    encoder = TextEncoder(model, texts)
    for shape in [(3, 64), (3, 2, 64), (2, 32)]:
        with pytest.raises(NPTError, match="do not fit"):
            encoder(torch.zeros(shape))
    with pytest.raises(NPTError, match="no context"):
        encoder()


def test_resnet():
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 64, 64, 1, 1).eval()
    encoder, image = ImageEncoder(model.visual), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(image), model.visual(image))
    with pytest.raises(NPTError, match="ViT"):
        encoder(image, torch.zeros(2, 8))
