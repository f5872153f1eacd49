"""Heads: modules that map features (B, in_features) to features (B, out_features)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dassl.utils import Registry, check_availability
from dassl.utils.errors import InvalidValue

HEAD_REGISTRY = Registry("HEAD")
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the head `name`. InvalidValue if it is not registered."""
    check_availability(name, HEAD_REGISTRY.registered_names(), key="MODEL.HEAD.NAME")
    if verbose:
        print(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)


class MLP(nn.Module):
    """Linear layers, each followed by optional batch norm, an activation and optional dropout."""

    def __init__(
        self,
        in_features: int,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InvalidValue(
                f'MODEL.HEAD.ACTIVATION is "{activation}": use one of {", ".join(ACTIVATIONS)}'
            )
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise InvalidValue("MODEL.HEAD.HIDDEN_LAYERS is empty: give the widths of the layers")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([in_features, *widths], widths, strict=False):
            layers.append(nn.Linear(fan_in, fan_out))
            if bn:
                layers.append(nn.BatchNorm1d(fan_out))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Build the head named "mlp"."""
    return MLP(**kwargs)
