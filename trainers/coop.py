"""CoOp: context vectors for all classes, or for each class (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.metrics import compute_accuracy
from npt.class_names import tokens_of
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


class Context(PromptLearner):
    """Context vectors (n, D), or class-specific (K, n, D)."""

    def __init__(self, ctx: Tensor):
        super().__init__()
        self.ctx = nn.Parameter(ctx)

    def forward(self, image_features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.ctx, []


class CoOp(PromptTrainer):
    """Trains context vectors; reports the accuracy of each batch."""

    node = "COOP"

    @classmethod
    def build_prompts(
        cls, cfg: Any, classes: Classes, clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        node = cfg.TRAINER.COOP
        width = context_width(clip_model)
        specific = node.CSC and not node.CTX_INIT
        if node.CTX_INIT and node.CSC:
            print("TRAINER.COOP.CSC has no effect with CTX_INIT: all classes share the context")
        if node.CTX_INIT:
            n = len(node.CTX_INIT.replace("_", " ").split(" "))
            ctx, prefix = written_context(clip_model, node.CTX_INIT, n, "TRAINER.COOP")
        elif specific:
            ctx, prefix = random_context(len(classes.names), node.N_CTX, width)
        else:
            ctx, prefix = random_context(node.N_CTX, width)
        announce(prefix, ctx.shape[-2])
        lengths = [len(tokens_of(name)) for name in classes.names]
        tokens = class_prompts(prefix, classes.names)
        where = node.CLASS_TOKEN_POSITION
        return Context(ctx), place_context(tokens, ctx.shape[-2], where, lengths, specific)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(image)
        with torch.no_grad():
            accuracy = compute_accuracy(logits, label)[0].squeeze()
        return F.cross_entropy(logits, label), {"acc": accuracy}
