"""Whether a package `clip` computes what OpenAI's does.

Copies in host repositories differ in ways that names and signatures do not show: they return
other features, or need arguments that OpenAI's code has not. So a package is tried out: its
tokenizer on one text, and its models, a small ViT and a small ResNet, on weights and images that
follow from a rule. The features must be the ones below, which OpenAI's definition gives.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

WIDTH, LAYERS, FEATURES = 64, 2, 4
VOCABULARY, CONTEXT = 12, 6
TOKENS = [[10, 3, 7, 11, 0, 0], [10, 1, 2, 8, 4, 11]]  # a text ends at its largest id
TEXT = "It's a Café-au-lait, 12 photos of a Greyhound dog!"
TEXT_IDS = [
    *(49406, 585, 568, 320, 15304, 268, 2566, 268, 572, 585, 267, 272, 273, 2479, 539, 320, 27363),
    *(1929, 256, 49407),
]
TEXTS = [[0.48776, -0.04023, -0.15503, 0.57714], [0.57443, -0.27045, 0.17257, 0.64143]]
VIT_IMAGES = [[-1.591, 0.19621, 0.15726, 0.09641], [-1.55878, 0.19021, 0.20207, -0.00269]]
RESNET_IMAGES = [[16.54015, 2.60974, -11.31731, -6.79473], [14.46836, 2.07994, -9.90029, -5.20054]]
TOLERANCE = 1e-4

Shapes = dict[str, tuple[int, ...]]


def check(package: ModuleType) -> None:
    """Raise an exception, of any type, if `package` is not like OpenAI's clip.

    The package's code runs: the state of the random generators changes.
    """
    _check_tokenizer(package)
    module = importlib.import_module(f"{package.__name__}.model")
    with torch.no_grad():
        vit = _build(module, vit_shapes())
        _check_features(vit, images(16), VIT_IMAGES)
        _check_layers(vit)
        _check_half(module, vit)
        _check_features(_build(module, resnet_shapes()), images(64), RESNET_IMAGES)


def _check_tokenizer(package: Any) -> None:
    ids = package.tokenize(TEXT)
    expected = [*TEXT_IDS, *[0] * (77 - len(TEXT_IDS))]
    if ids.tolist() != [expected] or package.clip._tokenizer.encode(TEXT) != TEXT_IDS[1:-1]:
        raise ValueError("its tokenizer gives other token ids")
    try:
        package.tokenize("a " * 77)
    except RuntimeError:
        return
    raise ValueError("its tokenizer takes a text that is too long")


def _build(module: Any, shapes: Shapes) -> Any:
    weights = numbers(shapes)
    model = module.build_model(dict(weights)).float().cpu()
    if model.state_dict().keys() != weights.keys():
        raise ValueError("its models have other weights")
    return model


def _check_features(model: Any, batch: Tensor, expected: list[list[float]]) -> None:
    found = {
        "images": (model.encode_image(batch), expected),
        "texts": (model.encode_text(torch.tensor(TOKENS, device="cpu")), TEXTS),
    }
    for what, (features, values) in found.items():
        if not _same(features, torch.tensor(values, device="cpu")):
            raise ValueError(f"its models give other features of {what}")


def _check_layers(model: Any) -> None:
    """The layers of a transformer can be called one by one, as `npt.encoders.plain` does."""
    for transformer in (model.transformer, model.visual.transformer):
        x = given = spread((CONTEXT, 2, WIDTH), 7)  # (tokens, B, WIDTH)
        for layer in transformer.resblocks:
            x = layer(x)
        if not _same(x, transformer(given)):
            raise ValueError("the layers of its transformers cannot be called one by one")


def _check_half(module: Any, model: Any) -> None:
    module.convert_weights(model)
    half = {name for name, p in model.named_parameters() if p.dtype == torch.float16}
    single = ("ln_", "embedding", "logit_scale")
    if half != {name for name in vit_shapes() if not any(part in name for part in single)}:
        raise ValueError("its convert_weights leaves other weights in single precision")


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE
    )


# ---- weights and images that follow from a rule


def numbers(shapes: Shapes) -> dict[str, Tensor]:
    """Weights with these names and shapes, the same everywhere, and exact in half precision."""
    found = {}
    for name, shape in shapes.items():
        values = spread(shape, sum(name.encode()))
        if name.endswith(("logit_scale", "num_batches_tracked")):
            values = torch.ones(shape, device="cpu")
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            values = 1 + values / 4
        elif len(shape) == 4:  # a convolution
            values = values / 2 ** round(math.log2(math.prod(shape[1:])) / 2 - 1)
        elif len(shape) == 2 and "embedding" not in name:
            values = values / 8
        found[name] = values
    return found


def spread(shape: tuple[int, ...], start: int) -> Tensor:
    """Multiples of 1 / 64 between -1 and 1, in an order without a pattern."""
    places = torch.arange(start, start + math.prod(shape), device="cpu")
    return (places * places % 1009 % 127 - 63).float().reshape(shape) / 64


def images(size: int) -> Tensor:
    """(2, 3, size, size)"""
    return 4 * spread((2, 3, size, size), 5)


def vit_shapes() -> Shapes:
    return {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (5, WIDTH),
        "visual.proj": (WIDTH, FEATURES),
        "visual.conv1.weight": (WIDTH, 3, 8, 8),
        **_with_bias("visual.ln_pre", WIDTH),
        **_transformer("visual."),
        **_with_bias("visual.ln_post", WIDTH),
        **_text_shapes(),
    }


def resnet_shapes() -> Shapes:
    stem, width, pooled = 2, 4, 128
    shapes = _convolution("visual", "1", stem, 3, 3) | _convolution("visual", "2", stem, stem, 3)
    shapes |= _convolution("visual", "3", width, stem, 3)
    before = width
    for i in range(4):
        block, planes = f"visual.layer{i + 1}.0", width * 2**i
        shapes |= _convolution(block, "1", planes, before, 1)
        shapes |= _convolution(block, "2", planes, planes, 3)
        shapes |= _convolution(block, "3", 4 * planes, planes, 1)
        shapes |= {f"{block}.downsample.0.weight": (4 * planes, before, 1, 1)}
        shapes |= _batch_norm(f"{block}.downsample.1", 4 * planes)
        before = 4 * planes
    shapes["visual.attnpool.positional_embedding"] = (5, pooled)
    for name, rows in (("k", pooled), ("q", pooled), ("v", pooled), ("c", FEATURES)):
        shapes |= _with_bias(f"visual.attnpool.{name}_proj", rows, pooled)
    return {**shapes, **_text_shapes()}


def _text_shapes() -> Shapes:
    return {
        "positional_embedding": (CONTEXT, WIDTH),
        "text_projection": (WIDTH, FEATURES),
        "logit_scale": (),
        **_transformer(""),
        "token_embedding.weight": (VOCABULARY, WIDTH),
        **_with_bias("ln_final", WIDTH),
    }


def _transformer(prefix: str) -> Shapes:
    shapes: Shapes = {}
    for i in range(LAYERS):
        layer = f"{prefix}transformer.resblocks.{i}"
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
        shapes |= {f"{layer}.attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= _with_bias(f"{layer}.attn.out_proj", WIDTH, WIDTH)
        shapes |= _with_bias(f"{layer}.ln_1", WIDTH)
        shapes |= _with_bias(f"{layer}.mlp.c_fc", 4 * WIDTH, WIDTH)
        shapes |= _with_bias(f"{layer}.mlp.c_proj", WIDTH, 4 * WIDTH)
        shapes |= _with_bias(f"{layer}.ln_2", WIDTH)
    return shapes


def _with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _convolution(prefix: str, number: str, planes: int, before: int, size: int) -> Shapes:
    """A convolution without bias, and its batch norm."""
    weight = {f"{prefix}.conv{number}.weight": (planes, before, size, size)}
    return weight | _batch_norm(f"{prefix}.bn{number}", planes)


def _batch_norm(name: str, planes: int) -> Shapes:
    statistics = {f"{name}.running_mean": (planes,), f"{name}.running_var": (planes,)}
    return {**_with_bias(name, planes), **statistics, f"{name}.num_batches_tracked": ()}
