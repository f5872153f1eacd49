"""Backbones: modules that map images (B, 3, H, W) to features (B, out_features)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dassl.utils import Registry, check_availability

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """The base class of backbones. Subclasses set `_out_features`, the number of features."""

    def __init__(self):
        super().__init__()
        self._out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        return self._out_features


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the backbone `name`. InvalidValue if it is not registered."""
    names = BACKBONE_REGISTRY.registered_names()
    check_availability(name, names, key="MODEL.BACKBONE.NAME")
    if verbose:
        print(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)


class _ResNet(Backbone):
    """A ResNet of torchvision without its classifier."""

    def __init__(self, name: str, pretrained: bool):
        super().__init__()
        from torchvision import models

        weights = "IMAGENET1K_V1" if pretrained else None
        self.body = models.get_model(name, weights=weights)
        self._out_features = self.body.fc.in_features
        self.body.fc = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def _register_resnet(name: str) -> None:
    def build(pretrained: bool = True, **kwargs: Any) -> Backbone:
        return _ResNet(name, pretrained)

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)


for _name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    _register_resnet(_name)
