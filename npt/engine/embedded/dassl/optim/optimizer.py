"""`build_optimizer`: OPTIM.NAME and its settings to a torch optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from dassl.utils.errors import InvalidValue

from .radam import RAdam


def _betas(o) -> dict[str, Any]:
    return {"betas": (o.ADAM_BETA1, o.ADAM_BETA2)}


def _sgd(o) -> dict[str, Any]:
    return {
        "momentum": o.MOMENTUM,
        "dampening": o.SGD_DAMPNING,
        "nesterov": o.SGD_NESTEROV,
    }


# name: class, and the settings that it takes from the config beside lr and weight_decay
OPTIMIZERS: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "adam": (torch.optim.Adam, _betas),
    "amsgrad": (torch.optim.Adam, lambda o: {**_betas(o), "amsgrad": True}),
    "sgd": (torch.optim.SGD, _sgd),
    "rmsprop": (
        torch.optim.RMSprop,
        lambda o: {"momentum": o.MOMENTUM, "alpha": o.RMSPROP_ALPHA},
    ),
    "radam": (RAdam, _betas),
    "adamw": (torch.optim.AdamW, _betas),
}


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg, param_groups: list[dict] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a module, of parameters, or of ready-made `param_groups`.

    OPTIM.STAGED_LR gives the children named in OPTIM.NEW_LAYERS the rate LR and the other
    parameters LR * BASE_LR_MULT. ValueError where OPTIM.NAME is unknown.
    """
    name = optim_cfg.NAME
    if name not in OPTIMIZERS:
        raise InvalidValue(f'OPTIM.NAME is "{name}": use one of {", ".join(OPTIMIZERS)}')
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn(
                "OPTIM.STAGED_LR is ignored, as build_optimizer was given param_groups",
                stacklevel=2,
            )
    elif optim_cfg.STAGED_LR:
        param_groups = _staged(model, optim_cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    cls, settings = OPTIMIZERS[name]
    return cls(
        param_groups,
        lr=optim_cfg.LR,
        weight_decay=optim_cfg.WEIGHT_DECAY,
        **settings(optim_cfg),
    )


def _staged(model: nn.Module, optim_cfg) -> list[dict]:
    """Two parameter groups: the old layers at the reduced rate, the new ones at LR."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs a module, as it picks layers by their names")
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    if not new_layers:
        warnings.warn(
            "OPTIM.NEW_LAYERS is empty: OPTIM.STAGED_LR gives every layer the reduced rate",
            stacklevel=3,
        )
    children = dict(model.named_children())
    unknown = [name for name in new_layers if name not in children]
    if unknown:
        raise InvalidValue(
            f"OPTIM.NEW_LAYERS names {unknown}, but the model's layers are: {', '.join(children)}"
        )
    new = [p for name in new_layers for p in children[name].parameters()]
    taken = {id(p) for p in new}
    old = [p for p in model.parameters() if id(p) not in taken]
    return [
        {"params": old, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT},
        {"params": new},
    ]
