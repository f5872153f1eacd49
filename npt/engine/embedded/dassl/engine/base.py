"""`TrainerBase`: named models with optimizers and checkpoints, and the steps of a run."""

from __future__ import annotations

import glob
import os.path as osp
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl.utils import save_checkpoint, tolist_if_not
from dassl.utils.errors import MissingFile, NotFinite, UnusableCheckpoint
from dassl.utils.torchtools import (
    BEST,
    check_finite,
    load_trainer_checkpoint,
    restore_from,
    scheduler_state,
    unwrap,
)

from . import resume
from .writer import NoWriter, summary_writer

# What restoring a checkpoint raises if an entry is not what it should be.
WRONG_CONTENT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class TrainerBase:
    """The base class of all trainers.

    `train` calls `before_train`, then in each epoch `before_epoch`, `run_epoch` and `after_epoch`,
    and at the end `after_train`.
    """

    start_epoch = 0
    epoch = 0
    max_epoch = 0
    batch_idx: int  # set by run_epoch
    num_batches: int  # in an epoch, set by run_epoch
    first_batch = 0  # of the current epoch: a run that goes on has done the ones before
    output_dir = ""  # set by subclasses; without it, nothing is saved on the way

    def __init__(self):
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self._resumed_random: dict[str, Any] | None = None
        self._frozen: dict[str, dict[str, float]] = {}  # by model: see resume.frozen_sums
        self._last_save = 0.0  # time of the last save of the progress
        self._all_batches_done = False  # of this epoch, by the run_epoch of TrainerX or TrainerXU
        self._stop: Any = None  # npt.stopping.Deferred, while the epochs are trained
        self._bars: Any = None  # npt.bars.Training, meanwhile, if there is a terminal
        self._losses: Any = None  # npt.late.Late, from the first loss on

    # ------------------------------------------------------------------------------- models

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None
    ) -> None:
        """Register a model, with its optimizer and schedule, under the name of its checkpoints."""
        if "_models" not in self.__dict__:
            raise AttributeError("Call super().__init__() of the trainer before register_model()")
        if name in self._models:
            raise ValueError(f'There is already a model named "{name}": choose another name')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """`names` as a list; all names if `names` is empty. ValueError if a name is unknown."""
        if not names:
            return list(self._models)
        names = tolist_if_not(names)
        unknown = [name for name in names if name not in self._models]
        if unknown:
            raise ValueError(
                f"There is no model named {unknown}: use {', '.join(self._models) or 'no names'}"
            )
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Set models to training mode ("train") or evaluation mode ("test" or "eval")."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f'The model mode is "{mode}": use train, test or eval')
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # -------------------------------------------------------------------------- checkpoints

    def checkpoint_extra(self) -> dict[str, Any]:
        """Additional entries of a checkpoint: plain values and tensors. Subclasses override it."""
        return {}

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save every model in `directory`/<its name>/ after epoch `epoch`, counted from 0."""
        extra = self.checkpoint_extra()
        run = resume.run_state(self)
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
        """Restore the newest checkpoint in `directory`; returns the next epoch, counted from 0.

        Returns 0 if there is no checkpoint. UnusableCheckpoint if it does not fit the models.
        """
        names = self.get_model_names()
        failed = None
        for point in resume.save_points(directory, names) if names else ():
            try:
                checkpoints = point.load()
            except (UnusableCheckpoint, MissingFile) as err:
                failed = failed or err
                warnings.warn(f"{err}. Trying the checkpoint before it", stacklevel=2)
                continue
            print(f"Found checkpoint at {directory} (will resume training)")
            return self._restore(point, checkpoints)
        if failed is not None:
            raise failed
        print("No checkpoint found, train from scratch")
        return 0

    def _restore(self, point: resume.SavePoint, checkpoints: dict[str, dict[str, Any]]) -> int:
        """Restore the checkpoints of all models; returns the next epoch, counted from 0."""
        for name, checkpoint in checkpoints.items():
            fpath = point.files[name]
            self.check_checkpoint(checkpoint, fpath)
            resume.check_same_run(self, fpath, checkpoint.get("run") or {})
        for name, checkpoint in checkpoints.items():
            print(f'Loading checkpoint from "{point.files[name]}"')
            model = self._models[name]
            check_finite(point.files[name], checkpoint["state_dict"], model)
            try:
                restore_from(checkpoint, model, self._optims[name], self._scheds[name])
            except WRONG_CONTENT as err:
                raise _does_not_fit(point.files[name], name, err) from err
        checkpoint = next(iter(checkpoints.values()))
        self.first_batch = checkpoint.get("batch", 0)
        try:
            self.load_progress_state(checkpoint.get("progress") or {})
            run = checkpoint.get("run")
            if run is not None:
                resume.set_run_state(self, run)
                self._resumed_random = run["random"]
        except WRONG_CONTENT as err:
            raise _does_not_fit(str(point), ", ".join(checkpoints), err) from err
        return checkpoint["epoch"]

    def check_checkpoint(self, checkpoint: dict[str, Any], fpath: str) -> None:
        """Raise an error if a run cannot go on from a checkpoint. Subclasses override it."""

    def progress_state(self) -> dict[str, Any]:
        """Further values that a run needs to go on: plain values and tensors. For subclasses."""
        return {}

    def load_progress_state(self, state: dict[str, Any]) -> None:
        """Restore the values of `progress_state`."""

    def save_progress(self, epoch: int, batch: int = 0) -> None:
        """Save what the run needs to go on after `epoch` epochs and `batch` batches of the next."""
        self._check_last_step()
        if self.output_dir:
            resume.save_progress(self, self.output_dir, epoch, batch, self._frozen)
        self._last_save = time.monotonic()

    def after_batch(self) -> None:
        """Called after each training step: saves the progress if it is time, or the run must stop.

        Raises SystemExit, with the exit codes of `npt.stopping`, after a signal to stop.
        """
        due = time.monotonic() - self._last_save > resume.SECONDS_BETWEEN_SAVES
        if due or self.stop_requested:
            self.save_progress(self.epoch, self.batch_idx + 1)
        self.stop_if_requested()

    @property
    def stop_requested(self) -> bool:
        return self._stop is not None and bool(self._stop.signal)

    def stop_if_requested(self) -> None:
        """Raise SystemExit if a signal has asked the run to stop; the progress must be saved."""
        if self.stop_requested:
            print(f"Stopped by {self._stop.signal}: the same command goes on from this point")
            raise SystemExit(self._stop.exit_code)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model from `directory`: after epoch `epoch`, counted from 1, or the best one.

        MissingFile if there is no such file, UnusableCheckpoint if it does not fit the model.
        """
        if not directory:
            print("load_model() is skipped: no directory with a trained model is given")
            return
        file_name = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            fpath = osp.join(directory, name, file_name)
            if not osp.isfile(fpath):
                raise MissingFile(_missing(fpath))
            checkpoint = load_trainer_checkpoint(fpath)
            result = checkpoint.get("val_result")
            result = f"{result:.1f}" if isinstance(result, (int, float)) else "none"
            print(f"Load {fpath} to {name} (epoch={checkpoint['epoch']}, val_result={result})")
            check_finite(fpath, checkpoint["state_dict"], self._models[name])
            try:
                unwrap(self._models[name]).load_state_dict(checkpoint["state_dict"])
            except RuntimeError as err:
                raise _does_not_fit(fpath, name, err) from err

    # ----------------------------------------------------------------------- updating weights

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the learning-rate schedules. Trainers call this at the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise NotFinite (a FloatingPointError) if the loss is infinite or NaN.

        On a GPU, which the step would have to wait for, the loss of the call before is checked.
        """
        if self._losses is None:
            from npt.late import Late  # not at the top: npt imports dassl

            self._losses = Late()
        where = f"epoch {self.epoch + 1}, batch {getattr(self, 'batch_idx', 0) + 1}"

        def check(values: torch.Tensor) -> None:
            if not torch.isfinite(values).all():
                raise NotFinite(
                    f"The loss is infinite or NaN in {where}: lower OPTIM.LR or use a higher "
                    "precision"
                )

        self._losses.add(loss, check)

    def _check_last_step(self) -> None:
        """Check what is not checked yet."""
        if self._losses is not None:
            self._losses.finish()

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
                with overflow_named(self):
                    self._optims[name].step()

    def model_backward_and_update(
        self, loss: torch.Tensor, names: str | list[str] | None = None
    ) -> None:
        """Zero the gradients, backpropagate the loss, step the optimizers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # ---------------------------------------------------------------------------- TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Open a TensorBoard event file in `log_dir`, unless one is open; and TRAIN.WANDB's run."""
        from npt import tracking  # not at the top: npt imports dassl

        if self._writer is not None:
            return
        writer = summary_writer()
        if writer is NoWriter:
            print("TensorBoard is not installed, so no event file is written")
        else:
            print(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = writer(log_dir=log_dir)
        tracking.track(self)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number to TensorBoard, if an event file is open, and to TRAIN.WANDB's run."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ------------------------------------------------------------------------ steps of a run

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train from `start_epoch`, or the epoch of the resumed checkpoint, to `max_epoch`.

        SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end the run after the current step, when its state is
        saved.
        """
        from npt import bars  # not at the top: npt imports dassl
        from npt.stopping import Deferred

        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        with self._folder_locked(), ExitStack() as at_end:
            at_end.callback(self.close_writer)
            self.before_train()
            if self._resumed_random is not None:
                # before_train of a subclass may have used the generators after they were restored.
                resume.set_random_state(self._resumed_random)
                self._resumed_random = None
            self.epoch = max(self.start_epoch - 1, 0)  # if no epoch is left to train
            self._frozen = {name: resume.frozen_sums(m) for name, m in self._models.items()}
            self._last_save = time.monotonic()
            with Deferred() as self._stop, bars.training(self) as self._bars:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self._train_epoch(epoch)
            self._stop = self._bars = None
            self.after_train()

    def _train_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for name, loader in resume.seeded_loaders(self).items():
            trains = name in ("train_loader_x", "train_loader_u")
            loader.start_epoch(epoch, self.first_batch if trains else 0)
        self._all_batches_done = False
        self.before_epoch()
        self.run_epoch()
        self._check_last_step()
        self.after_epoch()
        self._all_batches_done = False
        self.first_batch = 0
        self.save_progress(epoch + 1)
        self.stop_if_requested()

    @contextmanager
    def _folder_locked(self) -> Iterator[None]:
        """Hold a lock on the output folder inside a `with` block: a folder is for one run."""
        from npt.files import is_locked_here, locked

        lock = Path(self.output_dir) / ".lock"
        if not self.output_dir or is_locked_here(lock):
            yield
        else:
            with locked(lock, f"running in {self.output_dir}"):
                yield

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

    # The number of batches that these two take depends on the subclass.

    def parse_batch_train(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define parse_batch_train()")

    def forward_backward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward_backward()")

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define parse_batch_test()")

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define model_inference()")


@contextmanager
def overflow_named(trainer: TrainerBase) -> Iterator[None]:
    """Turn an optimizer's error about a number too large for float32 into NotFinite."""
    try:
        yield
    except RuntimeError as err:
        if "without overflow" not in str(err):
            raise
        raise NotFinite(
            f"A step in epoch {trainer.epoch + 1} is too large for float32: lower OPTIM.LR, "
            "OPTIM.WARMUP_CONS_LR, OPTIM.WARMUP_MIN_LR or OPTIM.WEIGHT_DECAY"
        ) from err


def _missing(fpath: str) -> str:
    folder = osp.dirname(fpath)
    files = glob.glob(osp.join(glob.escape(folder), "model*.pth.tar*"))
    found = ", ".join(sorted(map(osp.basename, files))) or "no checkpoint"
    return (
        f'There is no model at "{fpath}" (that folder has {found}): check --model-dir and '
        "--load-epoch"
    )


def _does_not_fit(fpath: str, name: str, err: Exception) -> UnusableCheckpoint:
    reason = " ".join(str(err).split())
    return UnusableCheckpoint(
        f'The checkpoint "{fpath}" does not fit the model "{name}" of this config: use the config '
        f"of its training, or another folder ({reason})"
    )
