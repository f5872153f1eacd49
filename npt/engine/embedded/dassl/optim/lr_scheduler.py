"""Learning-rate schedules with an optional warm-up before them.

`step()` is called once per epoch. The state dict of a warm-up contains the state dict of the
schedule after it, not the object, so that a resumed run updates its own optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from dassl.utils.errors import InvalidValue
from dassl.utils.torchtools import load_scheduler_state, scheduler_state

__all__ = [
    "SCHEDULERS",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
]


class _BaseWarmupScheduler(LRScheduler):
    """The rates of `warmup_rate` for `warmup_epoch` epochs, then the rates of `successor`.

    The first epoch after the warm-up has the first rate of `successor`, whatever epoch `successor`
    starts from.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_rate(self, base_lr: float, epoch: int) -> float:
        """The learning rate in epoch `epoch` of the warm-up, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define warmup_rate()")

    def get_lr(self) -> list[Any]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        base_lrs: list[Any] = self.base_lrs
        return [self.warmup_rate(base_lr, self.last_epoch) for base_lr in base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step()
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step()

    def state_dict(self) -> dict[str, Any]:
        return scheduler_state({k: v for k, v in self.__dict__.items() if k != "optimizer"})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = dict(state_dict)
        if "successor" in state:
            load_scheduler_state(self.successor, state.pop("successor"))
        super().load_state_dict(state)


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """A warm-up with the constant rate `cons_lr`."""

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_rate(self, base_lr: float, epoch: int) -> float:
        return self.cons_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """A warm-up with `min_lr` in the first epoch, then lr * epoch / warmup_epoch."""

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_rate(self, base_lr: float, epoch: int) -> float:
        return self.min_lr if epoch == 0 else base_lr * epoch / self.warmup_epoch


def _single_step(optimizer, o) -> LRScheduler:
    if o.STEPSIZE in ((), []):
        raise InvalidValue(
            "OPTIM.STEPSIZE is empty: give the epochs after which single_step lowers the rate, "
            "such as (20,), or (-1,) for OPTIM.MAX_EPOCH"
        )
    stepsize = o.STEPSIZE[-1] if isinstance(o.STEPSIZE, (list, tuple)) else o.STEPSIZE
    return StepLR(optimizer, step_size=stepsize if stepsize > 0 else o.MAX_EPOCH, gamma=o.GAMMA)


def _multi_step(optimizer, o) -> LRScheduler:
    if not isinstance(o.STEPSIZE, (list, tuple)) or min(o.STEPSIZE, default=0) <= 0:
        raise InvalidValue(
            f"OPTIM.STEPSIZE is {o.STEPSIZE}: give the epochs at which multi_step lowers the rate, "
            "such as (20, 40)"
        )
    return MultiStepLR(optimizer, milestones=list(o.STEPSIZE), gamma=o.GAMMA)


def _cosine(optimizer, o) -> LRScheduler:
    length: Any = float(o.MAX_EPOCH)  # a float in checkpoints, as in Dassl
    return CosineAnnealingLR(optimizer, length)


SCHEDULERS = {"single_step": _single_step, "multi_step": _multi_step, "cosine": _cosine}


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg) -> LRScheduler:
    """Build the schedule named by OPTIM.LR_SCHEDULER, after the warm-up of OPTIM.WARMUP_*.

    InvalidValue if one of these keys has a value that cannot be used.
    """
    name = optim_cfg.LR_SCHEDULER
    if name not in SCHEDULERS:
        raise InvalidValue(f'OPTIM.LR_SCHEDULER is "{name}": use one of {", ".join(SCHEDULERS)}')
    if optim_cfg.MAX_EPOCH < 1:
        raise InvalidValue(f"OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}: it must be 1 or more")
    scheduler = SCHEDULERS[name](optimizer, optim_cfg)
    epochs = optim_cfg.WARMUP_EPOCH
    if epochs <= 0:
        return scheduler
    if epochs > optim_cfg.MAX_EPOCH:
        raise InvalidValue(
            f"OPTIM.WARMUP_EPOCH is {epochs}, but OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}: the "
            "warm-up cannot be longer than the training"
        )
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = epochs
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_MIN_LR)
    raise InvalidValue(f'OPTIM.WARMUP_TYPE is "{optim_cfg.WARMUP_TYPE}": use constant or linear')
