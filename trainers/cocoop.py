"""CoCoOp: a small network adds a vector per image to the context (Zhou et al., CVPR 2022)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from npt.encoders import ClassPrompts
from npt.encoders.packing import place_context
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import (
    Classes,
    PromptLearner,
    announce,
    class_prompts,
    context_width,
    random_context,
    written_context,
)

if TYPE_CHECKING:
    from clip.model import CLIP


class ConditionalContext(PromptLearner):
    """Context vectors (n, D), and a network that maps image features (B, E) to their shift (B, D).

    The same shift is added to all n vectors.
    """

    def __init__(self, ctx: Tensor, features: int):
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        hidden = features // 16
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(features, hidden),
                relu=nn.ReLU(inplace=True),
                linear2=nn.Linear(hidden, ctx.shape[-1]),
            )
        )

    def forward(self, image_features: Tensor) -> tuple[Tensor, list[Tensor]]:
        shift = self.meta_net(image_features)  # (B, D)
        return self.ctx + shift[:, None, None], []  # (B, 1, n, D)


class CoCoOp(PromptTrainer):
    """Trains context vectors that depend on the image."""

    node = "COCOOP"

    @classmethod
    def build_prompts(
        cls, cfg: Any, classes: Classes, clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        node = cfg.TRAINER.COCOOP
        if node.CTX_INIT:
            n = len(node.CTX_INIT.replace("_", " ").split(" "))
            ctx, prefix = written_context(clip_model, node.CTX_INIT, n, "TRAINER.COCOOP")
        else:
            ctx, prefix = random_context(node.N_CTX, context_width(clip_model))
        announce(prefix, len(ctx))
        learner = ConditionalContext(ctx, clip_model.visual.output_dim)
        return learner, place_context(class_prompts(prefix, classes.names), len(ctx))
