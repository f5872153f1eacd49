"""A backbone, an optional head, and a linear classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dassl.modeling import build_backbone, build_head


class SimpleNet(nn.Module):
    """The network of MODEL.BACKBONE and MODEL.HEAD; without a classifier if `num_classes` is 0.

    `forward` returns logits (B, K), or features (B, D) if there is no classifier; with
    `return_feature` it returns (logits, features).
    """

    def __init__(self, cfg, model_cfg, num_classes: int, **kwargs):
        super().__init__()
        self.backbone = build_backbone(
            model_cfg.BACKBONE.NAME,
            verbose=cfg.VERBOSE,
            pretrained=model_cfg.BACKBONE.PRETRAINED,
            **kwargs,
        )
        features: Any = self.backbone.out_features
        self.head: nn.Module | None = None
        if model_cfg.HEAD.NAME and model_cfg.HEAD.HIDDEN_LAYERS:
            self.head = build_head(
                model_cfg.HEAD.NAME,
                verbose=cfg.VERBOSE,
                in_features=features,
                hidden_layers=model_cfg.HEAD.HIDDEN_LAYERS,
                activation=model_cfg.HEAD.ACTIVATION,
                bn=model_cfg.HEAD.BN,
                dropout=model_cfg.HEAD.DROPOUT,
                **kwargs,
            )
            features = self.head.out_features
        self.classifier = nn.Linear(features, num_classes) if num_classes > 0 else None
        self._fdim = features

    @property
    def fdim(self) -> int:
        return self._fdim

    def forward(self, x: torch.Tensor, return_feature: bool = False):
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits
