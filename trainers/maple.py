"""MaPLe: prompts in both encoders, coupled by linear maps (Khattak et al., CVPR 2023)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npt.encoders import ClassPrompts
from npt.encoders.packing import place_context
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import (
    CONTEXT_STD,
    Classes,
    PromptLearner,
    announce,
    class_prompts,
    context_width,
    random_context,
    visual_width,
    written_context,
)

if TYPE_CHECKING:
    from clip.model import CLIP


class MultiModalContext(PromptLearner):
    """Text prompts (n, D) for the inputs of the first `depth` layers, and linear maps to (n, Dv).

    The maps give the visual prompts. In a CLIP with fewer layers than `depth`, the deepest prompts
    are not used and keep their initial values.
    """

    def __init__(self, ctx: Tensor, width: int, depth: int, layers: int):
        super().__init__()
        n, d = ctx.shape
        self.used = min(depth, layers) - 1
        self.proj = nn.Linear(d, width)
        self.ctx = nn.Parameter(ctx)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(torch.empty(n, d).normal_(std=CONTEXT_STD)) for _ in range(depth - 1)
        )
        first = nn.Linear(d, width)  # the maps of all deep prompts start as copies of it
        self.compound_prompt_projections = nn.ModuleList(
            copy.deepcopy(first) for _ in range(depth - 1)
        )

    def visual(self) -> tuple[Tensor, list[Tensor]]:
        maps = list(self.compound_prompt_projections)[: self.used]
        deep = [m(p) for m, p in zip(maps, self.compound_prompts_text, strict=False)]
        return self.proj(self.ctx), deep

    def forward(self, image_features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.ctx, list(self.compound_prompts_text)[: self.used]


class MaPLe(PromptTrainer):
    """Trains text prompts, and linear maps from them to visual prompts, in several layers."""

    node = "MAPLE"
    model_name = "MultiModalPromptLearner"
    key_prefix = "prompt_learner."

    @classmethod
    def build_prompts(
        cls, cfg: Any, classes: Classes, clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        node = cfg.TRAINER.MAPLE
        width = visual_width(clip_model)
        if node.CTX_INIT and node.N_CTX <= 4:
            # the first N_CTX words become context vectors, the others remain words
            ctx, prefix = written_context(clip_model, node.CTX_INIT, node.N_CTX, "TRAINER.MAPLE")
        else:
            ctx, prefix = random_context(node.N_CTX, context_width(clip_model))
        announce(prefix, len(ctx))
        layers = max(clip_model.transformer.layers, clip_model.visual.transformer.layers)
        learner = MultiModalContext(ctx, width, node.PROMPT_DEPTH, layers)
        return learner, place_context(class_prompts(prefix, classes.names), len(ctx))
