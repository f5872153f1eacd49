"""Checkpoints on disk, and small operations on modules."""

from __future__ import annotations

import os.path as osp
import pickle
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .errors import MissingFile, UnusableCheckpoint
from .salvage import Placeholder, salvage
from .tools import atomic_write, mkdir_if_missing

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "load_scheduler_state",
    "newest_checkpoint",
    "open_all_layers",
    "open_specified_layers",
    "restore_from",
    "resume_from_checkpoint",
    "save_checkpoint",
    "scheduler_state",
    "unwrap",
]

POINTER = "checkpoint"  # the text file that holds the newest checkpoint's name
BEST = "model-best.pth.tar"
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel, else the module itself."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


# ---------------------------------------------------------------- schedulers as plain numbers


def _plain(value: Any) -> tuple[bool, Any]:
    """Whether `value` is made of numbers, strings and tensors only, and that value."""
    if isinstance(value, LRScheduler):
        return True, scheduler_state(value)
    if isinstance(value, np.generic):
        return True, value.item()
    if isinstance(value, _PLAIN):
        return True, value
    if isinstance(value, (list, tuple)):
        parts = [_plain(v) for v in value]
        return all(ok for ok, _ in parts), [v for _, v in parts]
    if isinstance(value, Mapping):
        return _plain(list(value))[0], {k: v for k, (ok, v) in _pairs(value) if ok}
    return False, None


def _pairs(mapping: Mapping) -> Iterable[tuple[Any, tuple[bool, Any]]]:
    return ((k, _plain(v)) for k, v in mapping.items())


def scheduler_state(scheduler: LRScheduler | Mapping) -> dict[str, Any]:
    """A scheduler's state as plain values; a scheduler inside it becomes its own state."""
    state = scheduler if isinstance(scheduler, Mapping) else scheduler.state_dict()
    return {key: value for key, (ok, value) in _pairs(state) if ok}


def load_scheduler_state(scheduler: LRScheduler, state: Mapping) -> None:
    """Put a state of `scheduler_state`, or of a Dassl checkpoint, into `scheduler`.

    A scheduler held by `scheduler` stays the object it is, tied to the live optimizer; only its
    numbers change.
    """
    rest = {}
    for key, value in state.items():
        current = getattr(scheduler, key, None)
        if isinstance(current, LRScheduler):
            inner = value.state if isinstance(value, Placeholder) else value
            load_scheduler_state(current, inner)
            continue
        ok, value = _plain(value)
        if ok and key != "optimizer":
            rest[key] = type(current)(value) if isinstance(current, Counter) else value
    scheduler.load_state_dict(rest)


# ------------------------------------------------------------------------ writing and reading


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write `save_dir`/`model_name` (default model.pth.tar-<epoch>), then the pointer to it.

    Both writes are atomic and the pointer comes last, so it never names a file that is not
    complete. `is_best` also writes model-best.pth.tar.
    """
    mkdir_if_missing(save_dir)
    state = {k: v.item() if isinstance(v, np.generic) else v for k, v in state.items()}
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    if isinstance(state.get("scheduler"), (Mapping, LRScheduler)):
        state["scheduler"] = scheduler_state(state["scheduler"])

    fpath = osp.join(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    _save(state, fpath)
    print(f"Checkpoint saved to {fpath}")
    if is_best:
        best = osp.join(save_dir, BEST)
        _save(state, best)
        print(f"Best checkpoint saved to {best}")
    with atomic_write(osp.join(save_dir, POINTER), "w") as f:
        f.write(osp.basename(fpath) + "\n")


def _save(state: dict[str, Any], fpath: str) -> None:
    with atomic_write(fpath) as f:
        torch.save(state, f)


def _without_module(state_dict: Mapping[str, Any]) -> OrderedDict:
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """A checkpoint, on the CPU. Nothing in the file is executed.

    Objects other than tensors and plain values (Dassl pickles its scheduler) come back as
    inert placeholders. FileNotFoundError, or RuntimeError for a damaged file.
    """
    if fpath is None:
        raise ValueError("load_checkpoint needs the path of a checkpoint, not None")
    if not osp.isfile(fpath):
        raise MissingFile(f'There is no checkpoint at "{fpath}": check the folder and epoch')
    try:
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # it holds something else than tensors and plain values
    except (RuntimeError, EOFError, ValueError, KeyError) as err:
        raise _damaged(fpath) from err
    try:
        content, replaced = salvage(fpath)
    except Exception as err:
        raise _damaged(fpath) from err
    shown = ", ".join(replaced[:5]) + (", ..." if len(replaced) > 5 else "")
    print(f'Left out of "{fpath}", as only tensors and plain values are loaded: {shown}')
    return content


def _damaged(fpath: str) -> UnusableCheckpoint:
    return UnusableCheckpoint(
        f'"{fpath}" is damaged or is no checkpoint: take another epoch, or write it again'
    )


def newest_checkpoint(fdir: str) -> str | None:
    """The file that the pointer in `fdir` names; None where there is no pointer.

    FileNotFoundError where it names a file that is not there.
    """
    pointer = osp.join(fdir, POINTER)
    if not osp.isfile(pointer):
        return None
    with open(pointer, encoding="utf-8") as f:
        name = f.readline().strip()
    fpath = osp.join(fdir, name)
    if not name or not osp.isfile(fpath):
        raise MissingFile(
            f'"{pointer}" names the checkpoint "{name}", which is not there: '
            "restore it, or write the name of another one into that file"
        )
    return fpath


def restore_from(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Put a loaded checkpoint into model, optimizer and scheduler; returns its epoch."""
    unwrap(model).load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        load_scheduler_state(scheduler, checkpoint["scheduler"])
        print("Loaded scheduler")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def resume_from_checkpoint(
    fdir: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Restore the newest checkpoint in `fdir`; returns the epoch to continue with."""
    fpath = newest_checkpoint(fdir)
    if fpath is None:
        raise MissingFile(
            f'There is no file named "{POINTER}" in "{fdir}": no run left a checkpoint there'
        )
    print(f'Loading checkpoint from "{fpath}"')
    return restore_from(load_checkpoint(fpath), model, optimizer, scheduler)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Copy the weights that agree with `model` in name and shape; says what was left out."""
    checkpoint = load_checkpoint(weight_path)
    found = _without_module(checkpoint.get("state_dict", checkpoint))
    own = unwrap(model).state_dict()
    matched = {
        key: value
        for key, value in found.items()
        if key in own and isinstance(value, torch.Tensor) and own[key].shape == value.shape
    }
    if not matched:
        warnings.warn(
            f'No weight of "{weight_path}" agrees in name and shape with the model: '
            "nothing was loaded (check MODEL.INIT_WEIGHTS)",
            stacklevel=2,
        )
        return
    unwrap(model).load_state_dict({**own, **matched})
    print(f'Loaded {len(matched)} of {len(own)} pretrained weights from "{weight_path}"')
    left_out = [key for key in found if key not in matched]
    if left_out:
        print(f"Left out, as name or shape differs: {left_out}")


# -------------------------------------------------------------------------------------- modules


def count_num_param(model: nn.Module | None = None, params: Any = None) -> int:
    """The number of parameters of a module, or in `params` (tensors or parameter groups)."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or a list of parameters")
    groups = (p["params"] if isinstance(p, dict) else [p] for p in params)
    return sum(p.numel() for group in groups for p in group)


def open_all_layers(model: nn.Module) -> None:
    """Training mode and gradients for everything."""
    model.train()
    for p in model.parameters():
        p.requires_grad = True


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Training mode and gradients for the named children; evaluation and none for the rest."""
    model = unwrap(model)
    wanted = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    unknown = [name for name in wanted if name not in children]
    if unknown:
        raise ValueError(f"The model has no layers {unknown}; it has: {', '.join(children)}")
    for name, child in children.items():
        child.train(name in wanted)
        for p in child.parameters():
            p.requires_grad = name in wanted


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise linear and convolution layers by `init_type`, batch norms around one."""
    schemes = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }
    if init_type not in schemes:
        raise ValueError(f'Unknown init_type "{init_type}": use one of {", ".join(schemes)}')
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            schemes[init_type](module.weight)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, gain)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
