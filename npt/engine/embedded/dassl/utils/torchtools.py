"""Checkpoint files, and small operations on modules."""

from __future__ import annotations

import io
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
    "check_finite",
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "load_scheduler_state",
    "load_trainer_checkpoint",
    "newest_checkpoint",
    "open_all_layers",
    "open_specified_layers",
    "restore_from",
    "resume_from_checkpoint",
    "save_checkpoint",
    "save_file",
    "scheduler_state",
    "unwrap",
]

POINTER = "checkpoint"  # the text file that contains the name of the newest checkpoint
BEST = "model-best.pth.tar"
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel, or else `model` itself."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


# ------------------------------------------------------------------ scheduler states


def _plain(value: Any) -> tuple[bool, Any]:
    """Whether `value` consists of numbers, strings and tensors, and the form in which to save it.

    Schedulers are replaced by their states, numpy numbers by Python numbers, tuples by lists.
    """
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
    """A scheduler's state as plain values. A scheduler inside it is replaced by its state."""
    state = scheduler if isinstance(scheduler, Mapping) else scheduler.state_dict()
    return {key: value for key, (ok, value) in _pairs(state) if ok}


def load_scheduler_state(scheduler: LRScheduler, state: Mapping) -> None:
    """Load a state of `scheduler_state`, or of a Dassl checkpoint, into `scheduler`.

    A scheduler inside `scheduler` is not replaced, because it refers to the current optimizer; its
    state is loaded into it.
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


# ------------------------------------------------------------------ saving and loading


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save `save_dir`/`model_name` (default model.pth.tar-<epoch>), then write the pointer to it.

    Both writes are atomic and the pointer is written last, so it always names a complete file.
    `is_best` also saves model-best.pth.tar.
    """
    mkdir_if_missing(save_dir)
    state = {k: v.item() if isinstance(v, np.generic) else v for k, v in state.items()}
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    if isinstance(state.get("scheduler"), (Mapping, LRScheduler)):
        state["scheduler"] = scheduler_state(state["scheduler"])

    fpath = osp.join(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    save_file(state, fpath)
    print(f"Checkpoint saved to {fpath}")
    if is_best:
        best = osp.join(save_dir, BEST)
        save_file(state, best)
        print(f"Best checkpoint saved to {best}")
    with atomic_write(osp.join(save_dir, POINTER), "w") as f:
        f.write(osp.basename(fpath) + "\n")


def save_file(state: dict[str, Any], fpath: str) -> None:
    """torch.save, atomically. UnwritableFile (an OSError) if, for example, the disk is full."""
    # torch.save into a file hides the system's reason for a failed write.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(fpath, "wb") as f:
        f.write(content.getbuffer())


def _without_module(state_dict: Mapping[str, Any]) -> OrderedDict:
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Load a checkpoint on the CPU, without executing code from the file.

    Objects other than tensors and plain values, such as the scheduler in a checkpoint of Dassl, are
    replaced by inert placeholders. MissingFile if there is no file, UnusableCheckpoint if it is
    damaged.
    """
    from npt.files import check_zip  # not at the top: npt imports dassl

    if fpath is None:
        raise ValueError("load_checkpoint needs the path of a checkpoint, not None")
    if not osp.isfile(fpath):
        raise MissingFile(f'There is no checkpoint at "{fpath}": check the folder and epoch')
    try:
        check_zip(fpath)  # torch.load does not compare checksums
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # the file contains other objects than tensors and plain values
    except MemoryError:
        raise
    except Exception as err:  # damaged bytes lead to many types
        raise _damaged(fpath) from err
    try:
        content, replaced = salvage(fpath)
    except Exception as err:
        raise _damaged(fpath) from err
    shown = ", ".join(replaced[:5]) + (", ..." if len(replaced) > 5 else "")
    print(f'Left out of "{fpath}", because only tensors and plain values are loaded: {shown}')
    return content


def load_trainer_checkpoint(fpath: str) -> dict[str, Any]:
    """`load_checkpoint`, but UnusableCheckpoint if a trainer did not save the file."""
    checkpoint = load_checkpoint(fpath)
    good = (
        isinstance(checkpoint, Mapping)
        and isinstance(checkpoint.get("state_dict"), Mapping)
        and isinstance(checkpoint.get("epoch"), int)
    )
    if not good:
        raise UnusableCheckpoint(
            f'"{fpath}" is not a checkpoint of a trainer, it has no state_dict or no epoch: '
            "choose another file"
        )
    return dict(checkpoint)


def check_finite(fpath: str, state: Mapping[str, Any], model: nn.Module) -> None:
    """UnusableCheckpoint if a state dict has values of the model that are infinite or NaN."""
    from npt.finite import not_finite

    bad = not_finite(state, {name for name, _ in unwrap(model).named_parameters()})
    if bad:
        raise UnusableCheckpoint(
            f'"{fpath}" has values that are infinite or NaN in {", ".join(bad[:3])}: its training '
            "has diverged, train again with a lower OPTIM.LR"
        )


def _damaged(fpath: str) -> UnusableCheckpoint:
    return UnusableCheckpoint(
        f'"{fpath}" is damaged or is not a checkpoint: use another epoch, or save it again'
    )


def newest_checkpoint(fdir: str) -> str | None:
    """The file named by the pointer in `fdir`; None if there is no pointer.

    MissingFile if the pointer does not name a file in that folder.
    """
    pointer = osp.join(fdir, POINTER)
    if not osp.isfile(pointer):
        return None
    with open(pointer, encoding="utf-8", errors="replace") as f:
        name = f.readline(1000).strip()
    fpath = osp.join(fdir, name)
    if not name or name != osp.basename(name) or "\0" in name or not osp.isfile(fpath):
        raise MissingFile(
            f'"{pointer}" names the checkpoint "{name}", which does not exist: '
            "restore it, or write the name of another checkpoint into that file"
        )
    return fpath


def restore_from(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Load a checkpoint into model, optimizer and scheduler; returns its epoch.

    A checkpoint with an entry `batch`, of an unfinished run, may lack frozen parameters.
    """
    target, state = unwrap(model), checkpoint["state_dict"]
    if "batch" in checkpoint:
        frozen = {k: p.detach() for k, p in target.named_parameters() if not p.requires_grad}
        state = {**frozen, **state}
    target.load_state_dict(state)
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
    """Restore the newest checkpoint in `fdir`; returns its number of finished epochs."""
    fpath = newest_checkpoint(fdir)
    if fpath is None:
        raise MissingFile(
            f'There is no file "{POINTER}" in "{fdir}", so there is no checkpoint to resume from: '
            "use the folder of a trained model"
        )
    print(f'Loading checkpoint from "{fpath}"')
    return restore_from(load_trainer_checkpoint(fpath), model, optimizer, scheduler)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load the weights whose name and shape agree with `model`; prints the names of the others."""
    checkpoint = load_checkpoint(weight_path)
    if not isinstance(checkpoint, Mapping):
        raise UnusableCheckpoint(
            f'"{weight_path}" does not contain a state dict: change MODEL.INIT_WEIGHTS'
        )
    found = _without_module(checkpoint.get("state_dict", checkpoint))
    own = unwrap(model).state_dict()
    matched = {
        key: value
        for key, value in found.items()
        if key in own and isinstance(value, torch.Tensor) and own[key].shape == value.shape
    }
    if not matched:
        warnings.warn(
            f'No weight in "{weight_path}" agrees with the model in name and shape, so nothing was '
            "loaded: check MODEL.INIT_WEIGHTS",
            stacklevel=2,
        )
        return
    unwrap(model).load_state_dict({**own, **matched})
    print(f'Loaded {len(matched)} of {len(own)} pretrained weights from "{weight_path}"')
    left_out = [key for key in found if key not in matched]
    if left_out:
        print(f"Left out, because the name or shape differs: {left_out}")


# ------------------------------------------------------------------ modules


def count_num_param(model: nn.Module | None = None, params: Any = None) -> int:
    """The number of parameters in a module, or in `params` (tensors or parameter groups)."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or a list of parameters")
    groups = (p["params"] if isinstance(p, dict) else [p] for p in params)
    return sum(p.numel() for group in groups for p in group)


def open_all_layers(model: nn.Module) -> None:
    """Set the model to training mode, and enable the gradients of all its parameters."""
    model.train()
    for p in model.parameters():
        p.requires_grad = True


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train only the children named in `open_layers`.

    These are set to training mode with gradients, all other children to evaluation mode without
    gradients. ValueError if the model has no child of a given name.
    """
    model = unwrap(model)
    wanted = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    unknown = [name for name in wanted if name not in children]
    if unknown:
        raise ValueError(f"The model has no layers {unknown}: use {', '.join(children)}")
    for name, child in children.items():
        child.train(name in wanted)
        for p in child.parameters():
            p.requires_grad = name in wanted


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialize linear and convolution layers by `init_type`, and batch norms around 1."""
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
