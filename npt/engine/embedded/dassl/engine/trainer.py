"""`SimpleTrainer`, and the training loops `TrainerX` and `TrainerXU`.

`TrainerX` trains on labelled images, `TrainerXU` on labelled and unlabelled images. The module
attribute `SummaryWriter` is imported from torch at the first access.
"""

from __future__ import annotations

import datetime
import os
import os.path as osp
import shutil
import time
import warnings
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import AverageMeter, MetricMeter, count_num_param, load_pretrained_weights
from dassl.utils.errors import InvalidValue, MissingFile, NotFinite, UnusableCheckpoint
from dassl.utils.torchtools import BEST, load_trainer_checkpoint

from . import resume
from .base import TrainerBase
from .build import TRAINER_REGISTRY, build_trainer
from .resume import GradScaler
from .simple_net import SimpleNet
from .writer import summary_writer

__all__ = [
    "TRAINER_REGISTRY",
    "AverageMeter",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
]


def __getattr__(name: str) -> Any:
    if name == "SummaryWriter":
        return summary_writer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from the config; saves checkpoints and tests at the end."""

    model: Any  # set by build_model
    _watch: Any = None  # npt.finite.FiniteWatch, from the first training step on
    _meters: Any = None  # a MetricMeter: the averages of the current epoch

    def __init__(self, cfg):
        super().__init__()
        self._unread: list[tuple] = []  # steps that are in no average yet: number, values, rate
        self._meters_before: dict[str, list] = {}  # sums of an epoch that another process began
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        # Set before the model is built, because hosts read these attributes in build_model.
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf

    def check_cfg(self, cfg) -> None:
        """Raise an error if the trainer cannot use the config. Subclasses override it."""

    def build_data_loader(self) -> None:
        """Build the data manager and set its loaders. Subclasses may override it."""
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u  # None without unlabelled images
        self.val_loader = dm.val_loader  # None without validation images
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build the model, its optimizer and its schedule, and register them."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        devices = torch.cuda.device_count()
        if devices > 1 and self.device.type == "cuda":
            print(f"{devices} GPUs are visible: the model runs on all of them (DataParallel)")
            self.model = nn.DataParallel(self.model)

    def train(self) -> None:  # type: ignore[override]  # as in Dassl
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume if there is a checkpoint, open TensorBoard, start measuring the time."""
        best = self.cfg.TEST.FINAL_MODEL == "best_val"
        if best and self.val_loader is None and not self.cfg.TEST.NO_TEST:
            warnings.warn(
                "TEST.FINAL_MODEL is best_val, but there are no validation images, so the best "
                "model is selected on the test images: use last_step",
                stacklevel=2,
            )
        own = resume.save_points(self.output_dir, self.get_model_names())
        source = self.output_dir if own else self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(source)
        if best and source != self.output_dir:
            self._copy_best(source)
        self._check_saved(best)
        self.init_writer(osp.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def _copy_best(self, source: str) -> None:
        """Take over the best model so far from the folder that this run goes on from."""
        for name in self.get_model_names():
            fpath = osp.join(source, name, BEST)
            if osp.isfile(fpath):
                os.makedirs(osp.join(self.output_dir, name), exist_ok=True)
                shutil.copyfile(fpath, osp.join(self.output_dir, name, BEST))

    def _check_saved(self, best: bool) -> None:
        """Check the files that the end of a run needs, and that this process will not write.

        The checkpoint of the last epoch is saved again if it is missing or damaged.
        UnusableCheckpoint if the best model so far is.
        """
        if best and self.best_result > -np.inf:
            for name in self.get_model_names():
                fpath = osp.join(self.output_dir, name, BEST)
                if not _loads(fpath):
                    raise UnusableCheckpoint(
                        f'"{fpath}", the best model so far, is missing or damaged: restore it, or '
                        "delete the output folder's checkpoints and run again"
                    )
        if self.get_model_names() and 0 < self.max_epoch <= self.start_epoch:
            last = f"model.pth.tar-{self.max_epoch}"
            if not all(_loads(osp.join(self.output_dir, x, last)) for x in self.get_model_names()):
                self.save_model(self.max_epoch - 1, self.output_dir)

    def after_epoch(self) -> None:
        """Save the best model on validation images, and a checkpoint every CHECKPOINT_FREQ epochs.

        A checkpoint is also saved after the last epoch.
        """
        last_epoch = self.epoch + 1 == self.max_epoch
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        due = freq > 0 and (self.epoch + 1) % freq == 0
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if due or last_epoch:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Test the last model or the best one, and print the elapsed time."""
        print("Finish training")
        print("Finished training")  # as in older Dassl; the family's parsers look for one of them
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model of the best validation result")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" or "test" (default TEST.SPLIT); returns the evaluator's first result.

        Without validation images, "val" means "test".
        """
        from npt import bars  # not at the top: npt imports dassl

        self.set_model_mode("eval")
        self.evaluator.reset()
        split = self.cfg.TEST.SPLIT if split is None else split
        if split == "val" and self.val_loader is not None:
            data_loader = self.val_loader
        else:
            split = "test"
            data_loader = self.test_loader
        print(f"Evaluate on the *{split}* set")
        with bars.batches(data_loader, split) as batches:
            for batch in batches:
                input, label = self.parse_batch_test(batch)
                self.evaluator.process(self.model_inference(input), label)
                if self.stop_requested and self._all_batches_done:  # the next process tests again
                    self.save_progress(self.epoch, self.num_batches)
                    self.stop_if_requested()
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Scores (B, K) for a batch of images."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = batch["img"], batch["label"]
        return image.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """The learning rate of the first parameter group of the first model with an optimizer."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return next(optim for optim in optims if optim is not None).param_groups[0]["lr"]

    # ------------------------------------------------------ shared by TrainerX and TrainerXU

    def _begin_epoch(self, losses: MetricMeter, *loaders: Any) -> None:
        """Make `losses` the averages of this epoch, with the part that an earlier process did.

        loaders: each gives a batch to every step
        """
        for name, (total, count) in self._meters_before.items():
            losses.meters[name].sum, losses.meters[name].count = total, count
        self._meters_before = {}
        self._meters = losses
        if self._bars is not None:
            self._bars.begin_epoch(sum(getattr(x, "batch_size", None) or 0 for x in loaders))

    def figures_so_far(self) -> dict[str, float]:
        """The averages of this epoch by name, for the bars of the training."""
        self._read_steps()
        meters = {} if self._meters is None else self._meters.meters
        return {name: meter.avg for name, meter in meters.items()}

    def progress_state(self) -> dict[str, Any]:
        self._read_steps()
        meters = {} if self._meters is None else self._meters.meters
        sums = {name: [float(meter.sum), meter.count] for name, meter in meters.items()}
        return {**super().progress_state(), "meters": sums}

    def load_progress_state(self, state: dict[str, Any]) -> None:
        super().load_progress_state(state)
        self._meters_before = state.get("meters", {}) if self.first_batch else {}

    def _check_step(self, loss_summary: dict[str, Any] | None, batch: Any) -> None:
        """NotFinite if the loss, the gradients or what is learned are infinite or NaN."""
        if self._watch is None:
            from npt.finite import FiniteWatch  # not at the top: npt imports dassl

            scaled = any(isinstance(x, GradScaler) for x in vars(self).values())
            self._watch = FiniteWatch(self._optims.values(), scaled)
        where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
        files = batch.get("impath", ()) if isinstance(batch, dict) else ()
        try:
            summary = loss_summary if isinstance(loss_summary, dict) else None
            self._watch.step(where, summary, files)
        except NotFinite:
            self._read_steps()  # what led to this
            raise

    def _check_last_step(self) -> None:
        super()._check_last_step()
        if self._watch is not None:
            self._watch.finish()

    def _end_epoch(self) -> None:
        self._read_steps()
        self._check_last_step()
        self._all_batches_done = True
        if self._bars is not None:
            self._bars.end_epoch()

    def _add_step(self, loss_summary: dict[str, Any] | None) -> None:
        """Add the values of a step to the averages of the epoch; those on a GPU are read later."""
        from npt.late import must_wait

        has_rate = any(optim is not None for optim in self._optims.values())
        rate = self.get_current_lr() if has_rate else None
        step = self.epoch * self.num_batches + self.batch_idx
        self._unread.append((step, loss_summary, rate))
        if not must_wait(loss_summary):
            self._read_steps()

    def _read_steps(self) -> None:
        """Read the values that are on the device, and write the averages to TensorBoard."""
        from npt.late import as_numbers

        steps, self._unread = self._unread, []
        summaries = as_numbers([loss_summary for _, loss_summary, _ in steps])
        for (step, _, rate), summary in zip(steps, summaries, strict=True):
            self._meters.update(summary)
            for name, meter in self._meters.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            if rate is not None:
                self.write_scalar("train/lr", rate, step)

    def _report(self, batch_time: AverageMeter, data_time: AverageMeter) -> None:
        """Print the progress every PRINT_FREQ batches.

        With bars on a terminal, the lines are for the log file only.
        """
        freq = self.cfg.TRAIN.PRINT_FREQ
        done = self.batch_idx + 1
        has_rate = any(optim is not None for optim in self._optims.values())
        if done % freq == 0 or self.num_batches < freq:
            self._read_steps()
            left = self.num_batches - done + (self.max_epoch - self.epoch - 1) * self.num_batches
            eta = datetime.timedelta(seconds=int(batch_time.avg * left))
            parts = [
                f"epoch [{self.epoch + 1}/{self.max_epoch}]",
                f"batch [{done}/{self.num_batches}]",
                f"time {batch_time.val:.3f} ({batch_time.avg:.3f})",
                f"data {data_time.val:.3f} ({data_time.avg:.3f})",
                f"{self._meters}",
                f"lr {self.get_current_lr():.4e}" if has_rate else "",
                f"eta {eta}",
            ]
            tell = print if self._bars is None else self._bars.log
            tell(" ".join(part for part in parts if part))
        if self._bars is not None:
            self._bars.step()


class TrainerX(SimpleTrainer):
    """Trains on labelled batches. Subclasses define `forward_backward(batch)`.

    That takes a training step on a batch and returns a dict of scalars to print.
    """

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        self._begin_epoch(losses, self.train_loader_x)
        end = time.time()
        # A run that was stopped after the last batch has none left.
        batches = islice(self.train_loader_x, self.num_batches - self.first_batch)
        for batch_idx, batch in enumerate(batches, self.first_batch):
            self.batch_idx = batch_idx
            data_time.update(time.time() - end)
            loss_summary = self.forward_backward(batch)
            batch_time.update(time.time() - end)
            self._check_step(loss_summary, batch)
            self._add_step(loss_summary)
            self._report(batch_time, data_time)
            self.after_batch()
            end = time.time()
        self._end_epoch()

    def parse_batch_train(self, batch: dict[str, Any]):
        """Images, labels and domain labels on the device."""
        names = ("img", "label", "domain")
        return tuple(batch[name].to(self.device, non_blocking=True) for name in names)


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled batches, with `forward_backward(batch_x, batch_u)`.

    TRAIN.COUNT_ITER selects the loader that determines the length of an epoch. The other loader is
    restarted as often as needed.
    """

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        if self.train_loader_u is None:
            raise InvalidValue(
                f"{type(self).__name__} needs unlabelled images, but the dataset "
                f'"{self.cfg.DATASET.NAME}" has no train_u: choose another dataset or trainer'
            )
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        if self.cfg.TRAIN.COUNT_ITER not in lengths:
            raise InvalidValue(
                f'TRAIN.COUNT_ITER is "{self.cfg.TRAIN.COUNT_ITER}": use one of '
                f"{', '.join(lengths)}"
            )
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        batches_x, batches_u = _endless(self.train_loader_x), _endless(self.train_loader_u)
        self._begin_epoch(losses, self.train_loader_x, self.train_loader_u)
        end = time.time()
        for batch_idx in range(self.first_batch, self.num_batches):
            self.batch_idx = batch_idx
            batch_x, batch_u = next(batches_x), next(batches_u)
            data_time.update(time.time() - end)
            loss_summary = self.forward_backward(batch_x, batch_u)
            batch_time.update(time.time() - end)
            self._check_step(loss_summary, batch_x)
            self._add_step(loss_summary)
            self._report(batch_time, data_time)
            self.after_batch()
            end = time.time()
        self._end_epoch()

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]):
        """Labelled images, their labels, and unlabelled images, on the device."""
        given = (batch_x["img"], batch_x["label"], batch_u["img"])
        return tuple(x.to(self.device, non_blocking=True) for x in given)


def _loads(fpath: str) -> bool:
    """Whether a file is a good checkpoint."""
    try:
        load_trainer_checkpoint(fpath)
    except (MissingFile, UnusableCheckpoint):
        return False
    return True


def _endless(loader):
    while True:
        yield from loader
