"""The reference encoders: all 77 tokens of every class, through the modules of the package clip.

The fast encoders must return the same values. Used in tests and benchmarks, and for
MODEL.PLAIN_ENCODERS True.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npt.backbones.openai import is_vit
from npt.encoders.packing import ClassPrompts

if TYPE_CHECKING:
    from clip.model import CLIP, VisionTransformer


class PlainTextEncoder(nn.Module):
    """The reference for TextEncoder, with the same `forward`."""

    transformer: Any  # clip.model.Transformer
    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter
    tokens: Tensor  # (K, 77)
    slots: Tensor | None  # (K, n)

    def __init__(self, clip_model: CLIP, prompts: ClassPrompts):
        super().__init__()
        prompts = prompts.within(
            len(clip_model.positional_embedding), len(clip_model.token_embedding.weight)
        )
        parts = ("transformer", "token_embedding", "ln_final", "text_projection")
        for name in (*parts, "positional_embedding"):
            setattr(self, name, getattr(clip_model, name))
        self.dtype = clip_model.dtype
        self.class_specific = prompts.class_specific
        self.register_buffer("tokens", prompts.tokens.cpu(), persistent=False)
        self.register_buffer("slots", prompts.slots, persistent=False)

    def forward(self, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        prompts = ClassPrompts(self.tokens, self.slots, self.class_specific)
        return text_features(self, prompts, ctx, deep)


class PlainImageEncoder(nn.Module):
    """The reference for ImageEncoder, with the same `forward`."""

    visual: Any  # a VisionTransformer or a ModifiedResNet

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def forward(
        self, image: Tensor, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        if is_vit(self.visual):
            return image_features(self.visual, image, ctx, deep)
        return self.visual(image.type(self.dtype))


def text_features(
    clip_model: CLIP | PlainTextEncoder,
    prompts: ClassPrompts,
    ctx: Tensor | None = None,
    deep: Sequence[Tensor] = (),
) -> Tensor:
    """As TextEncoder.forward: (K, E), or (B, K, E) if ctx has an image dimension."""
    if ctx is not None and ctx.dim() == 4:  # image by image, as in CoCoOp's code
        return torch.stack([text_features(clip_model, prompts, c, deep) for c in ctx])
    tokenized, slots, _ = prompts
    dtype = clip_model.dtype
    x = clip_model.token_embedding(tokenized).type(dtype)  # (K, 77, D)
    if ctx is not None:
        x = insert_context(x, slots, ctx.type(dtype))
    x = x + clip_model.positional_embedding.type(dtype)
    for i, layer in enumerate(clip_model.transformer.resblocks):
        if 0 < i <= len(deep):
            x = insert_context(x, slots, deep[i - 1].type(dtype))
        x = layer(x.permute(1, 0, 2)).permute(1, 0, 2)  # CLIP's layers take (77, K, D)
    x = clip_model.ln_final(x).type(dtype)
    x = x[torch.arange(len(x)), tokenized.argmax(dim=-1)]
    return x @ clip_model.text_projection


def insert_context(x: Tensor, slots: Tensor | None, ctx: Tensor) -> Tensor:
    """x (K, 77, D) with ctx (n, D) or (K, n, D) at the positions `slots` (K, n)."""
    assert slots is not None, "these prompts have no context positions"
    k, n = slots.shape
    index = slots.unsqueeze(-1).expand(k, n, x.shape[-1])
    return x.scatter(1, index, ctx.expand(k, n, -1))


def image_features(
    visual: VisionTransformer,
    image: Tensor,
    ctx: Tensor | None = None,
    deep: Sequence[Tensor] = (),
) -> Tensor:
    """As ImageEncoder.forward: (B, E)."""
    dtype = visual.conv1.weight.dtype
    x = visual.conv1(image.type(dtype))
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)  # (B, patches, Dv)
    cls = visual.class_embedding.to(dtype) + torch.zeros_like(x[:, :1])
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(dtype)
    tokens = x.shape[1]
    if ctx is not None:
        x = torch.cat([x, ctx.type(dtype).expand(x.shape[0], -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for i, layer in enumerate(visual.transformer.resblocks):
        if 0 < i <= len(deep):
            prompt = deep[i - 1].type(dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :tokens], prompt], dim=1)
        x = layer(x.permute(1, 0, 2)).permute(1, 0, 2)
    return visual.ln_post(x[:, 0]) @ visual.proj
