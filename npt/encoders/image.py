"""CLIP's image encoder with visual prompts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npt.backbones.openai import is_vit
from npt.encoders.blocks import layer_norm, run_layers
from npt.errors import NPTError


class ImageEncoder(nn.Module):
    """The image encoder `visual` of an unmodified CLIP; a ViT also takes prompts."""

    visual: Any  # a VisionTransformer or a ModifiedResNet

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.is_vit = is_vit(visual)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def forward(
        self, image: Tensor, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        """Features (B, E), not normalised, of images (B, 3, H, W).

        ctx: (n, Dv) prompts, appended to the patch tokens at the input of the first layer (layer
            0), without a positional embedding
        deep: (n, Dv) each, which replace these tokens at the inputs of layers 1, 2, ... (MaPLe)

        Raises NPTError for prompts in a ResNet.
        """
        image = image.to(self.dtype)
        if not self.is_vit:
            if ctx is not None:
                raise NPTError(
                    "visual prompts (MaPLe) need a ViT, and this CLIP has a ResNet; "
                    "set MODEL.BACKBONE.NAME to a ViT such as ViT-B/16"
                )
            return self.visual(image)
        visual = self.visual
        x = self._patches(image)  # (B, patches, Dv)
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
        x = layer_norm(visual.ln_pre, x)
        prompts = []
        if ctx is not None:
            prompts = [layer_norm(visual.ln_pre, ctx.to(x.dtype))[None]]  # ln_pre is per token
            prompts += [p.to(x.dtype)[None] for p in deep]
        read = torch.zeros(1, dtype=torch.long, device=x.device)  # the class token
        x = run_layers(visual.transformer.resblocks, x, prompts, read, attend, attend_read)
        return layer_norm(visual.ln_post, x[:, 0]) @ visual.proj

    def _patches(self, image: Tensor) -> Tensor:
        """The patch embedding, a convolution of stride = kernel size, as one matrix product."""
        weight = self.visual.conv1.weight
        size = weight.shape[-1]
        h, w = image.shape[2:]
        image = image[..., : h - h % size, : w - w % size]
        x = image.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, h, size, w, size)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, patches, C * size * size)
        # Under autocast, too, the hidden states keep the dtype of the weights.
        return F.linear(x, weight.flatten(1)).to(self.dtype)


def attend(qkv: Tensor) -> Tensor:
    """Attention of all tokens: (B, N, 3, H, d) queries, keys, values -> (B, N, H, d)."""
    q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, H, N, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_read(q: Tensor, kv: Tensor) -> Tensor:
    """Attention of R tokens: (B, R, 1, H, d) queries, (B, N, 2, H, d) -> (B, R, H, d)."""
    k, v = kv.transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(q[:, :, 0].transpose(1, 2), k, v).transpose(1, 2)
