"""`build_optimizer`: the torch optimizer of OPTIM.NAME."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from dassl.utils.errors import InvalidValue
from dassl.utils.torchtools import unwrap

from .radam import RAdam


def _betas(o) -> dict[str, Any]:
    return {"betas": (o.ADAM_BETA1, o.ADAM_BETA2)}


def _sgd(o) -> dict[str, Any]:
    return {
        "momentum": o.MOMENTUM,
        "dampening": o.SGD_DAMPNING,
        "nesterov": o.SGD_NESTEROV,
    }


# name: the class, and its arguments from OPTIM in addition to lr and weight_decay
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
    model: nn.Module | Iterable, optim_cfg, param_groups: list[Any] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of a module, of parameters, or of `param_groups` if they are given.

    With OPTIM.STAGED_LR, the children named in OPTIM.NEW_LAYERS have the learning rate LR and all
    other parameters LR * BASE_LR_MULT. InvalidValue if a value under OPTIM cannot be used.
    """
    name = optim_cfg.NAME
    if name not in OPTIMIZERS:
        raise InvalidValue(f'OPTIM.NAME is "{name}": use one of {", ".join(OPTIMIZERS)}')
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn(
                "OPTIM.STAGED_LR is ignored, because build_optimizer was called with param_groups",
                stacklevel=2,
            )
    elif optim_cfg.STAGED_LR:
        param_groups = _staged(model, optim_cfg)
    else:
        param_groups = list(model.parameters() if isinstance(model, nn.Module) else model)
    cls, settings = OPTIMIZERS[name]
    try:
        return cls(
            param_groups,
            lr=optim_cfg.LR,
            weight_decay=optim_cfg.WEIGHT_DECAY,
            **settings(optim_cfg),
        )
    except ValueError as err:
        if not param_groups:  # there is nothing to train: not the config's fault
            raise
        raise InvalidValue(
            f'A value under OPTIM is not valid for the optimizer "{name}": {err}'
        ) from err


def _staged(model: nn.Module | Iterable, optim_cfg) -> list[dict]:
    """Two parameter groups: the old layers at the reduced rate, the new layers at LR."""
    if not isinstance(model, nn.Module):
        raise InvalidValue(
            "OPTIM.STAGED_LR selects layers by their names, but this trainer passes parameters "
            "instead of a module to build_optimizer: set OPTIM.STAGED_LR to False"
        )
    model = unwrap(model)
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    if not new_layers:
        warnings.warn(
            "OPTIM.NEW_LAYERS is empty, so OPTIM.STAGED_LR reduces the learning rate of all "
            "layers: name the new layers",
            stacklevel=3,
        )
    children = dict(model.named_children())
    unknown = [name for name in new_layers if name not in children]
    if unknown:
        raise InvalidValue(
            f"OPTIM.NEW_LAYERS has unknown layers {unknown}: use {', '.join(children)}"
        )
    new = [p for name in new_layers for p in children[name].parameters()]
    is_new = {id(p) for p in new}
    old = [p for p in model.parameters() if id(p) not in is_new]
    return [
        {"params": old, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT},
        {"params": new},
    ]
