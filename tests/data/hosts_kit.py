"""A finished run of the host repository, for tests."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Run(NamedTuple):
    """A finished run of the host."""

    done: subprocess.CompletedProcess[str]
    output: Path

    @property
    def accuracy(self) -> float:
        """The last one that it told."""
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
