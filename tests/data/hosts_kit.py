"""The patterns of the host repository, and a finished run of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

PATTERNS = {
    "CoOp": "logits",
    "Parallel": "a model inside DataParallel",
    "Amp": "autocast and a scaler",
    "CoCoOp": "texts of each image's own, a loss in training",
    "MaPLe": "prompts in both encoders, a loss in training",
    "KgCoOp": "a tuple of logits and a score, a loss of the trainer's own",
    "PromptSRC": "a tuple that begins with the loss, more losses",
    "ProGrad": "two backward passes",
    "Ensemble": "several prompts a class, as many as images in a batch",
    "VPT": "text features kept from the first pass",
}


class Run(NamedTuple):
    """A finished run of the host."""

    done: subprocess.CompletedProcess[str]
    output: Path

    @property
    def accuracy(self) -> float:
        """The accuracy printed last."""
        return float(re.findall(r"\* accuracy: ([\d.]+)%", self.done.stdout)[-1])

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.output / "result.json").read_text())

    @property
    def checkpoint(self) -> Path:
        (file,) = self.output.glob("*/model.pth.tar-2")
        return file

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.checkpoint, weights_only=True)["state_dict"]
