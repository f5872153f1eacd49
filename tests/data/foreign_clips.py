"""CLIPs of open_clip and of transformers with random weights, and their features with prompts.

Prompts are put into the libraries' own models with hooks: what a person would do who trusts nothing
but the library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LAYERS = 2


class Foreign(NamedTuple):
    """A model of another library, and the parts of it at which prompts come in."""

    model: nn.Module
    encode_text: Callable[[Tensor], Tensor]
    encode_image: Callable[[Tensor], Tensor]
    embedding: nn.Module
    text_layers: Any
    image_norm: nn.Module | None
    image_layers: Any


def open_clip_config(name: str) -> dict[str, Any]:
    """The config of a model of open_clip, with LAYERS layers."""
    import open_clip

    config = copy.deepcopy(open_clip.get_model_config(name))
    config["text_cfg"]["layers"] = LAYERS
    if isinstance(config["vision_cfg"]["layers"], int):
        config["vision_cfg"]["layers"] = LAYERS
    return config


def of_open_clip(config: dict[str, Any]) -> Foreign:
    import open_clip

    torch.manual_seed(0)
    config = copy.deepcopy(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model: Any = kind(**config).eval()
    text, visual = getattr(model, "text", model), model.visual
    layers = visual.transformer.resblocks if hasattr(visual, "ln_pre") else []
    return Foreign(
        *(model, model.encode_text, model.encode_image, text.token_embedding),
        *(text.transformer.resblocks, getattr(visual, "ln_pre", None), layers),
    )


def of_transformers(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Foreign:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text, vision = {"num_hidden_layers": LAYERS, **text}, {"num_hidden_layers": LAYERS, **vision}
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, **more)).eval()

    def features(output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else output.pooler_output

    return Foreign(
        model,
        lambda tokens: features(model.get_text_features(input_ids=tokens)),
        lambda image: features(model.get_image_features(pixel_values=image)),
        model.text_model.embeddings.token_embedding,
        model.text_model.encoder.layers,
        model.vision_model.pre_layrnorm,
        model.vision_model.encoder.layers,
    )


@contextmanager
def prompted(
    clip: Foreign, slots: Tensor, text: list[Tensor], visual: list[Tensor]
) -> Iterator[None]:
    """A `with` block in which prompts are in the inputs of the first layers of both encoders.

    slots: (K, n); text: (n, D) each; visual: (n, Dv) each, the first one before `ln_pre`
    """

    def at_slots(x: Tensor, prompt: Tensor) -> Tensor:
        index = slots[..., None].expand(*slots.shape, x.shape[-1])
        return x.scatter(1, index, prompt.expand(len(x), -1, -1))

    def appended(x: Tensor, prompt: Tensor, kept: int | None = None) -> Tensor:
        return torch.cat([x[:, :kept], prompt.expand(len(x), -1, -1)], dim=1)

    def replacing(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda module, args: (function(args[0]), *args[1:])

    with ExitStack() as stack:
        if text:
            hook = clip.embedding.register_forward_hook(lambda m, i, x: at_slots(x, text[0]))
            stack.callback(hook.remove)
        for layer, prompt in zip(clip.text_layers[1:], text[1:], strict=False):
            function = replacing(lambda x, p=prompt: at_slots(x, p))
            stack.callback(layer.register_forward_pre_hook(function).remove)
        if visual and clip.image_norm is not None:
            function = replacing(lambda x: appended(x, visual[0]))
            stack.callback(clip.image_norm.register_forward_pre_hook(function).remove)
        for layer, prompt in zip(clip.image_layers[1:], visual[1:], strict=False):
            function = replacing(lambda x, p=prompt: appended(x, p, -len(p)))
            stack.callback(layer.register_forward_pre_hook(function).remove)
        yield
