"""CLIP's image encoder with visual prompts."""

from collections.abc import Sequence

import torch
from clip.model import VisionTransformer
from torch import Tensor, nn

from npt.encoders.blocks import layer_norm, run_layers
from npt.errors import NPTError


class ImageEncoder(nn.Module):
    """`visual` of an unmodified CLIP; in a ViT, prompts may join the patch tokens."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.is_vit = isinstance(visual, VisionTransformer)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def forward(
        self, image: Tensor, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        """Features (B, E), not normalised, of images (B, 3, H, W).

        ctx (n, Dv): prompts that follow the patch tokens into the first layer, without positional
        embedding; deep: (n, Dv) each, taking their place at the inputs of layers 1, 2, ... (MaPLe).
        Nothing before the first prompt needs gradients, so autograd records nothing there.
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
        x = visual.conv1(image).to(self.dtype)  # autocast or not, the residual stream stays exact
        x = x.flatten(2).transpose(1, 2)  # (B, patches, Dv)
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
        x = layer_norm(visual.ln_pre, x)
        prompts = []
        if ctx is not None:
            prompts = [layer_norm(visual.ln_pre, ctx.to(x.dtype))[None]]  # ln_pre is row by row
            prompts += [p.to(x.dtype)[None] for p in deep]
        x = run_layers(visual.transformer.resblocks, x, prompts, keep=1)  # the class token
        return layer_norm(visual.ln_post, x[:, 0]) @ visual.proj
