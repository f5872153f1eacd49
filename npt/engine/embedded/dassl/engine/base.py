"""`TrainerBase`: named models with their optimizers, their checkpoints, and the life of a run."""

from __future__ import annotations

import glob
import os.path as osp
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from dassl.utils import load_checkpoint, save_checkpoint, tolist_if_not
from dassl.utils.errors import MissingFile, NotFinite, UnusableCheckpoint
from dassl.utils.torchtools import BEST, newest_checkpoint, restore_from, scheduler_state, unwrap

from .resume import run_state, set_random_state, set_run_state
from .writer import NoWriter, summary_writer


class TrainerBase:
    """What a trainer is made of, whatever it trains.

    A run is `before_train`, then for each epoch `before_epoch`, `run_epoch`, `after_epoch`, then
    `after_train`.
    """

    start_epoch = 0
    epoch = 0
    max_epoch = 0

    def __init__(self):
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer = None
        self._resumed_random: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------- models

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None
    ) -> None:
        """Give a model a name, under which it is saved, loaded and switched between modes."""
        if "_models" not in self.__dict__:
            raise AttributeError("Call super().__init__() of the trainer before register_model()")
        if name in self._models:
            raise ValueError(f'There is already a model named "{name}": choose another name')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """`names` as a list, checked; the names of all models where there are none given."""
        if not names:
            return list(self._models)
        names = tolist_if_not(names)
        unknown = [name for name in names if name not in self._models]
        if unknown:
            raise ValueError(f"There is no model {unknown}; registered: {', '.join(self._models)}")
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch models to "train", or to "test" (also "eval")."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f'The model mode is "{mode}": use train, test or eval')
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # -------------------------------------------------------------------------- checkpoints

    def checkpoint_extra(self) -> dict[str, Any]:
        """More entries for a checkpoint: plain values and tensors. For subclasses."""
        return {}

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write every model to `directory`/<its name>/, as of the end of epoch `epoch` (from 0)."""
        extra = self.checkpoint_extra()
        run = run_state(self)
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                **extra,
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": scheduler_state(sched) if sched is not None else None,
                "val_result": None if val_result is None else float(val_result),
                "run": run,
            }
            folder = osp.join(directory, name)
            save_checkpoint(state, folder, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Restore the newest checkpoint in `directory`; returns the epoch to go on with."""
        names = self.get_model_names()
        files = {name: newest_checkpoint(osp.join(directory, name)) for name in names}
        if not names or None in files.values():
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        checkpoints = self._same_epoch(files)
        for name, checkpoint in checkpoints.items():
            print(f'Loading checkpoint from "{files[name]}"')
            try:
                restore_from(checkpoint, self._models[name], self._optims[name], self._scheds[name])
            except (RuntimeError, ValueError, KeyError) as err:
                raise _does_not_fit(files[name], name, err) from err
        run = checkpoint.get("run")
        if run is not None:
            set_run_state(self, run)
            self._resumed_random = run["random"]
        return checkpoint["epoch"]

    def _same_epoch(self, files: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Load the files; where a run died between two models, all of the older epoch."""
        checkpoints = {name: load_checkpoint(fpath) for name, fpath in files.items()}
        epoch = min(checkpoint["epoch"] for checkpoint in checkpoints.values())
        for name, checkpoint in checkpoints.items():
            if checkpoint["epoch"] != epoch:
                files[name] = osp.join(osp.dirname(files[name]), f"model.pth.tar-{epoch}")
                checkpoints[name] = load_checkpoint(files[name])
        return checkpoints

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model of `directory`, of the end of `epoch` (from 1) or the best one.

        FileNotFoundError naming the file that is missing and the epochs that are there.
        """
        if not directory:
            print("load_model() is skipped: no directory with a trained model is given")
            return
        file_name = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            fpath = osp.join(directory, name, file_name)
            if not osp.isfile(fpath):
                raise MissingFile(_missing(fpath))
            checkpoint = load_checkpoint(fpath)
            result = checkpoint.get("val_result")
            result = f"{result:.1f}" if isinstance(result, (int, float)) else "none"
            print(f"Load {fpath} to {name} (epoch={checkpoint['epoch']}, val_result={result})")
            try:
                unwrap(self._models[name]).load_state_dict(checkpoint["state_dict"])
            except RuntimeError as err:
                raise _does_not_fit(fpath, name, err) from err

    # ----------------------------------------------------------------------- updating weights

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; trainers call this at the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """FloatingPointError where the loss is not finite."""
        if not torch.isfinite(loss).all():
            raise NotFinite(
                f"The loss is infinite or not a number in epoch {self.epoch + 1}, batch "
                f"{getattr(self, 'batch_idx', 0) + 1}: lower OPTIM.LR or use a higher precision"
            )

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(
        self, loss: torch.Tensor, names: str | list[str] | None = None
    ) -> None:
        """Zero the gradients, run the loss backward, step the optimizers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # ---------------------------------------------------------------------------- TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Open TensorBoard's event file in `log_dir`, once."""
        if self._writer is not None:
            return
        writer = summary_writer()
        if writer is NoWriter:
            print("TensorBoard is not installed, so no event file is written")
        else:
            print(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = writer(log_dir=log_dir)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a number to TensorBoard; nothing happens where no writer is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ------------------------------------------------------------------------- life of a run

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from `start_epoch` (or where a checkpoint resumes) to `max_epoch`."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        if self._resumed_random is not None:
            # Again, as a subclass's before_train may have drawn random numbers since.
            set_random_state(self._resumed_random)
            self._resumed_random = None
        self.epoch = max(self.start_epoch - 1, 0)  # where nothing is left to train
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define run_epoch()")

    def test(self, split: str | None = None) -> float:
        raise NotImplementedError(f"{type(self).__name__} does not define test()")

    def parse_batch_train(self, batch: dict[str, Any]):
        raise NotImplementedError(f"{type(self).__name__} does not define parse_batch_train()")

    def parse_batch_test(self, batch: dict[str, Any]):
        raise NotImplementedError(f"{type(self).__name__} does not define parse_batch_test()")

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} does not define forward_backward()")

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define model_inference()")


def _missing(fpath: str) -> str:
    folder = osp.dirname(fpath)
    found = sorted(osp.basename(f) for f in _checkpoints(folder))
    there = f"that folder has {', '.join(found)}" if found else "that folder has no checkpoint"
    return f'There is no model at "{fpath}" ({there}): check --model-dir and --load-epoch'


def _checkpoints(folder: str) -> list[str]:
    return glob.glob(osp.join(glob.escape(folder), "model*.pth.tar*"))


def _does_not_fit(fpath: str, name: str, err: Exception) -> UnusableCheckpoint:
    reason = " ".join(str(err).split())
    return UnusableCheckpoint(
        f'The checkpoint "{fpath}" does not fit the model "{name}" as it is configured; use the '
        f"config it was trained with, or another folder ({reason})"
    )
