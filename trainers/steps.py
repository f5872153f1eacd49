"""The training step of all trainers here."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from dassl.engine import TrainerX
from npt.host.steps import on_device
from npt.late import reported


class PromptSteps(TrainerX):
    """Minimises the loss of the model, in the precision of the method."""

    model: Any  # a PromptedCLIP
    scaler: Any  # a GradScaler or None
    node = ""  # the method's config node, TRAINER.<node>

    @property
    def precision(self) -> str:
        """fp32, fp16 or amp"""
        return self.cfg.TRAINER[self.node].PREC if self.node else "fp32"

    @property
    def amp_dtype(self) -> torch.dtype:
        """bfloat16 on CPUs and on NVIDIA GPUs since Ampere, which compute in it; else float16."""
        if self.device.type != "cuda" or torch.cuda.get_device_capability(self.device)[0] >= 8:
            return torch.bfloat16
        return torch.float16

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.precision != "amp":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image = batch["img"].to(self.device, non_blocking=True)
        return image, on_device(batch["label"], self.device)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and other scalars to report by name."""
        return self.model(image, label), {}

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A training step on a batch; returns its loss and what else there is to report."""
        image, label = self.parse_batch_train(batch)
        with self.autocast():
            loss, report = self.loss(image, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return reported({"loss": loss.detach().double(), **report})  # to be summed as Python would

    def model_backward(self, loss: Tensor) -> None:
        if self.scaler is None:
            super().model_backward(loss)
        else:
            self.detect_anomaly(loss)
            self.scaler.scale(loss).backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        if self.scaler is None:
            super().model_update(names)
        else:
            self.scaler.step(self.optim)
            self.scaler.update()


def grad_scaler() -> Any:
    """A GradScaler for CUDA, which torch 2.3 moved to `torch.amp`."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda")
    return torch.cuda.amp.GradScaler()
