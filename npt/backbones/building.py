"""A CLIP of the package clip's classes, from a state dict and what the weights do not show.

Its constructor fills all weights with random numbers, which the state dict then replaces. Here it
runs on torch's device "meta", where nothing is computed. But what a run draws after it depends on
how many numbers the constructor has drawn, and with them the figures of a seed: `skip` lets the
random generator leave out that many, in less time than to draw them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from npt.backbones.catalog import HEAD, OPENAI, Form, Tower
from npt.backbones.openai import is_vit, openai_clip
from npt.errors import NPTError

if TYPE_CHECKING:
    from clip.model import CLIP

ACTIVATIONS = {
    "quick_gelu": lambda: openai_clip().model.QuickGELU(),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
}
SCALARS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files, not weights
NEEDED = (
    "visual.conv1.weight",
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.weight",
    "text_projection",
    "logit_scale",
)


def build(state: Mapping[str, Any], source: str, form: Form = OPENAI) -> CLIP:
    """A frozen CLIP in float32 with exactly the values of `state`, in eval mode.

    state: in the layout of OpenAI's files
    source: named in errors
    The random generator is left as clip's constructor would leave it.
    NPTError if it is not the state dict of a CLIP of this form.
    """
    where = f"{source} (MODEL.BACKBONE.NAME)"
    missing = [key for key in NEEDED if key not in state]
    if missing:
        raise NPTError(f"{where} is not a CLIP's state dict: it has no {missing[0]}")
    weights = {key: value for key, value in state.items() if key not in SCALARS}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise NPTError(f"{where} is not a CLIP's state dict: its entry {key!r} is no tensor")
        weights[key] = value = _single(value)
        if not _finite(value):
            raise NPTError(
                f"{where} has infinite numbers or NaN in {key}: it is damaged, or its training "
                "failed; get the file again"
            )
    construct = openai_clip().model.CLIP
    try:
        with Draws() as drawn, torch.device("meta"):
            model = construct(*sizes(weights, form))
        _shape(model, weights, form)
        model.load_state_dict(weights, assign=True)
    except Exception as error:  # the constructors of clip and torch raise many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise NPTError(f"{where} is not a CLIP's state dict: {reason}") from error
    skip(drawn.numbers)
    return model.eval().requires_grad_(False)


def _single(value: Tensor) -> Tensor:
    return value.float().contiguous() if value.is_floating_point() else value


def _finite(value: Tensor) -> bool:
    """Their sum is infinite or NaN if a number is; the sum of large numbers may be, too."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def image_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Height and width in pixels of the images of a CLIP with weights of these shapes."""
    if "visual.proj" in shapes:
        return _grid(shapes["visual.positional_embedding"]) * shapes["visual.conv1.weight"][-1]
    return _grid(shapes["visual.attnpool.positional_embedding"]) * 32


def _grid(shape: tuple[int, ...]) -> int:
    """The patches along a side, from the shape of the positional embedding."""
    side = round((shape[0] - 1) ** 0.5)
    if side**2 + 1 != shape[0]:
        raise ValueError(f"it takes no square images: it has {shape[0] - 1} positions")
    return side


def sizes(weights: Mapping[str, Tensor], form: Form) -> tuple[Any, ...]:
    """The arguments of clip's constructor."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    vocabulary, width = shapes["token_embedding.weight"]
    if "visual.proj" in shapes:
        image_width, *_, patch = shapes["visual.conv1.weight"]
        layers: Any = _count(shapes, "visual.transformer.resblocks")
    else:
        image_width, patch = shapes["visual.layer1.0.conv1.weight"][0], None
        layers = tuple(_count(shapes, f"visual.layer{i}") for i in (1, 2, 3, 4))
    embed, context = shapes["text_projection"][1], shapes["positional_embedding"][0]
    heads = form.text.heads or width // HEAD
    layers_of_text = _count(shapes, "transformer.resblocks")
    return (
        *(embed, image_size(shapes), layers, image_width, patch),
        *(context, vocabulary, width, heads, layers_of_text),
    )


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """The number of modules of a list, by the names of their weights."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for key in shapes if (found := pattern.match(key))})


def _shape(model: CLIP, weights: Mapping[str, Tensor], form: Form) -> None:
    """Give a CLIP on "meta" what its constructor has no argument for."""
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    towers = [(model.transformer, form.text, "transformer.resblocks")]
    if is_vit(model.visual):
        towers.append((model.visual.transformer, form.image, "visual.transformer.resblocks"))
    elif form.image.heads:
        model.visual.attnpool.num_heads = form.image.heads
    for transformer, tower, prefix in towers:
        for i, block in enumerate(transformer.resblocks):
            _shape_block(block, tower, weights[f"{prefix}.{i}.mlp.c_fc.weight"])
    for part, tower in ((model, form.text), (model.visual, form.image)):  # the latter's come last
        for norm in part.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = tower.eps


def _shape_block(block: Any, tower: Tower, fc: Tensor) -> None:
    if tower.heads:
        if block.attn.embed_dim % tower.heads:
            raise ValueError(f"{tower.heads} heads cannot share a width of {block.attn.embed_dim}")
        block.attn.num_heads = tower.heads
        block.attn.head_dim = block.attn.embed_dim // tower.heads
    if tower.activation != "quick_gelu":
        block.mlp.gelu = ACTIVATIONS[tower.activation]()
    hidden, width = fc.shape
    if hidden != 4 * width:
        with torch.device("meta"):
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)


# ---- random numbers


class Draws(TorchDispatchMode):
    """Counts the random numbers of 32 bits that operations draw on the CPU, if run on "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            size = result.numel()
            # Normal numbers are made in blocks of 16; the last block is drawn again if it is short.
            short = "uniform" not in function.name() and size % 16
            self.numbers += size + (16 if short else 0)
        return result


def skip(numbers: int) -> None:
    """Let the generator of the CPU leave out as many random numbers of 32 bits."""
    block = torch.empty(1 << 16, dtype=torch.uint8, device="cpu")  # a number for each byte
    for _ in range(numbers // len(block)):
        block.random_()
    block[: numbers % len(block)].random_()
