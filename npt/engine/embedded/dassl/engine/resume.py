"""The state from which a run goes on to the same bits, and the files that contain it.

After every epoch, and every two minutes within a long one, everything that the rest of the run
depends on is saved in `OUTPUT_DIR/resume/`: what is learned, optimizers, schedules, scalers, random
generators, the place in the epoch, and the configuration. The newest two files are kept. The named
checkpoints, `<model>/model.pth.tar-<epoch>`, contain the same for the end of an epoch.
"""

from __future__ import annotations

import glob
import os
import os.path as osp
import random
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dassl.data.seeding import SeededLoader
from dassl.utils.errors import MissingFile, UnusableCheckpoint
from dassl.utils.torchtools import (
    load_checkpoint,
    load_trainer_checkpoint,
    newest_checkpoint,
    save_file,
    scheduler_state,
    unwrap,
)

# Since torch 2.3, torch.amp.GradScaler is the base class of torch.cuda.amp.GradScaler.
GradScaler: Any = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler

FOLDER = "resume"
NAME = "epoch{epoch:06d}-batch{batch:08d}.pth.tar"
KEPT = 2
SECONDS_BETWEEN_SAVES = 120.0  # within an epoch


# ----------------------------------------------------------------------- state of a run


def random_state() -> dict[str, Any]:
    """The state of all random generators, as numbers and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        # Reading the state would initialize CUDA, so it is skipped if CUDA is not in use.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state of `random_state`; devices that are not available are skipped."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = np.asarray(keys, dtype=np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for i, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, i)


def run_state(trainer: Any) -> dict[str, Any]:
    """The state of a run besides models, optimizers and schedules, with its configuration."""
    from npt import identity  # not at the top: npt imports dassl

    here = run_identity(trainer)
    data = here.pop(identity.DATA, None)
    return {
        "random": random_state(),
        "scalers": {
            name: value.state_dict()
            for name, value in vars(trainer).items()
            if isinstance(value, GradScaler)
        },
        "best_result": float(getattr(trainer, "best_result", -np.inf)),
        "loaders": {name: loader.seed for name, loader in seeded_loaders(trainer).items()},
        "config": here,
        "data": data,
    }


def set_run_state(trainer: Any, state: dict[str, Any]) -> None:
    """Restore a state of `run_state`."""
    for name, scaler_state in state["scalers"].items():
        scaler = getattr(trainer, name, None)
        if isinstance(scaler, GradScaler) and scaler_state:
            scaler.load_state_dict(scaler_state)
    trainer.best_result = state["best_result"]
    loaders = seeded_loaders(trainer)
    for name, seed in state.get("loaders", {}).items():
        if name in loaders:
            loaders[name].seed = seed
    set_random_state(state["random"])


def seeded_loaders(trainer: Any) -> dict[str, SeededLoader]:
    """The trainer's loaders whose order follows from a seed, by attribute."""
    return {name: x for name, x in vars(trainer).items() if isinstance(x, SeededLoader)}


def check_same_run(trainer: Any, path: str, state: dict[str, Any]) -> None:
    """OtherRun if a checkpoint is of another configuration, or of other data, than the trainer's.

    A checkpoint that does not say, such as one of Dassl, is accepted.
    """
    from npt import identity

    here = run_identity(trainer)
    if state.get("config") and here:
        data = state.get("data") or here[identity.DATA]
        identity.check(path, {**state["config"], identity.DATA: data}, here)


def run_identity(trainer: Any) -> dict[str, Any]:
    """The flat config that figures depend on, and the checksum of the data; {} without a config."""
    from npt import identity

    cfg, manager = getattr(trainer, "cfg", None), getattr(trainer, "dm", None)
    if cfg is None:
        return {}
    known = vars(trainer).setdefault("_data_digest", {})  # computed once
    if manager is not None and not known:
        known[identity.DATA] = identity.data_digest(manager.dataset, cfg)
    config = identity.flat(identity.plain(cfg))
    kept = {key: value for key, value in config.items() if key not in identity.FREE}
    return {**kept, identity.DATA: known.get(identity.DATA)}


# ----------------------------------------------------------------------- what is not learned


def frozen_sums(model: nn.Module) -> dict[str, float]:
    """A sum over each parameter without gradient, by name, which shows whether it has changed."""
    frozen = {name: p for name, p in unwrap(model).named_parameters() if not p.requires_grad}
    if not frozen:
        return {}
    sums = torch.stack([p.detach().sum(dtype=torch.float64).cpu() for p in frozen.values()])
    return dict(zip(frozen, sums.tolist(), strict=True))


def changed_state(model: nn.Module, before: Mapping[str, float]) -> dict[str, Any]:
    """The state dict without the frozen parameters that are as `frozen_sums` found them before."""
    same = {name for name, total in frozen_sums(model).items() if before.get(name) == total}
    return {k: v for k, v in unwrap(model).state_dict().items() if k not in same}


# ----------------------------------------------------------------------- files


class SavePoint(NamedTuple):
    """Files from which a run can go on, by model. All models may be in the same file."""

    files: dict[str, str]

    def load(self) -> dict[str, dict[str, Any]]:
        """The checkpoint of each model. UnusableCheckpoint or MissingFile if a file is not good."""
        loaded: dict[str, dict[str, Any]] = {}
        for name, fpath in self.files.items():
            if osp.basename(osp.dirname(fpath)) == FOLDER:
                whole = load_checkpoint(fpath)
                if not _is_save(whole, osp.basename(fpath), name):
                    raise UnusableCheckpoint(
                        f'"{fpath}" is not a save of this run with the model "{name}"'
                    )
                rest = {k: v for k, v in whole.items() if k != "models"}
                loaded[name] = {**rest, **whole["models"][name]}
            else:
                loaded[name] = load_trainer_checkpoint(fpath)
        return loaded

    def __str__(self) -> str:
        return ", ".join(sorted(set(self.files.values())))


def _is_save(content: Any, file_name: str, model: str) -> bool:
    """Whether a file in the folder of saves has what `save_progress` writes, under its name."""
    kinds = {"models": Mapping, "run": Mapping, "progress": Mapping, "epoch": int, "batch": int}
    if not isinstance(content, Mapping):
        return False
    if not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return False
    state = content["models"].get(model)
    return (
        file_name == NAME.format(epoch=content["epoch"], batch=content["batch"])
        and isinstance(state, Mapping)
        and isinstance(state.get("state_dict"), Mapping)
        and {"random", "scalers", "best_result"} <= set(content["run"])
    )


def save_points(directory: str, names: list[str]) -> list[SavePoint]:
    """What a run in `directory` can go on from, the newest first."""
    found = [
        SavePoint(dict.fromkeys(names, fpath))
        for fpath in reversed(_saves(osp.join(directory, FOLDER)))
    ]
    by_pointer = _by_pointer(directory, names)
    named = [by_pointer] if by_pointer else []
    for epoch in sorted(_named_epochs(directory, names), reverse=True):
        point = SavePoint({n: osp.join(directory, n, f"model.pth.tar-{epoch}") for n in names})
        if point not in named:
            named.append(point)
    return found + named


def _by_pointer(directory: str, names: list[str]) -> SavePoint | None:
    """The files that the pointers name; the older epoch of all models if they differ in it.

    They differ if a run ended after it saved one model and before it saved the next.
    """
    try:
        files = {name: newest_checkpoint(osp.join(directory, name)) for name in names}
    except MissingFile:
        return None
    if any(fpath is None for fpath in files.values()):
        return None
    found = {name: str(fpath) for name, fpath in files.items()}
    epochs = {name: _epoch_of(fpath) for name, fpath in found.items()}
    if len(set(epochs.values())) > 1 and all(epoch is not None for epoch in epochs.values()):
        oldest = min(epoch for epoch in epochs.values() if epoch is not None)
        return SavePoint({n: osp.join(directory, n, f"model.pth.tar-{oldest}") for n in names})
    return SavePoint(found)


def _named_epochs(directory: str, names: list[str]) -> set[int]:
    """The epochs of which there is a named checkpoint of every model."""
    found = []
    for name in names:
        files = glob.glob(osp.join(glob.escape(osp.join(directory, name)), "model.pth.tar-*"))
        found.append({epoch for f in files if (epoch := _epoch_of(f)) is not None})
    return set.intersection(*found) if found else set()


def _epoch_of(fpath: str) -> int | None:
    match = re.fullmatch(r"model\.pth\.tar-(\d+)", osp.basename(fpath))
    return int(match[1]) if match else None


def save_progress(trainer: Any, directory: str, epoch: int, batch: int, frozen: Any) -> None:
    """Save everything to go on from after `epoch` epochs and `batch` batches of the next one.

    frozen: `frozen_sums` of each model at the start of the training
    """
    models = {}
    for name in trainer.get_model_names():
        optim, sched = trainer._optims[name], trainer._scheds[name]
        models[name] = {
            "state_dict": changed_state(trainer._models[name], frozen[name]),
            "optimizer": optim.state_dict() if optim is not None else None,
            "scheduler": scheduler_state(sched) if sched is not None else None,
        }
    state = {
        **trainer.checkpoint_extra(),
        "models": models,
        "run": run_state(trainer),
        "progress": trainer.progress_state(),
    }
    folder = osp.join(directory, FOLDER)
    name = NAME.format(epoch=epoch, batch=batch)
    save_file({**state, "epoch": epoch, "batch": batch}, osp.join(folder, name))
    for old in _saves(folder)[:-KEPT]:
        os.remove(old)


def _saves(folder: str) -> list[str]:
    """The files that `save_progress` has written, the oldest first."""
    return sorted(glob.glob(osp.join(glob.escape(folder), "epoch*-batch*.pth.tar")))
