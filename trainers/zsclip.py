"""Zero-shot CLIP with hand-written prompts (Radford et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npt.backbones.loading import load_clip
from npt.class_names import readable
from npt.encoders import ClassPrompts, TextEncoder
from npt.losses import unit_rows, without_autocast
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import Classes, PromptLearner, tokenize

if TYPE_CHECKING:
    from clip.model import CLIP


def hand_written_prompts(classes: Classes) -> ClassPrompts:
    """The template with each class name in place of {}."""
    texts = [hand_written(classes, name) for name in classes.names]
    return ClassPrompts(tokenize(texts, classes.names))


def hand_written(classes: Classes, name: str) -> str:
    """The prompt of one class."""
    return classes.template.format(readable(name))


def frozen_text_features(backbone: str, classes: Classes, device: torch.device) -> Tensor:
    """Text features (K, E), of length 1, of the classes' hand-written prompts in a frozen CLIP.

    backbone: see `load_clip`. The CLIP is loaded for this call only. NPTError if it cannot be
    loaded.
    """
    prompts = hand_written_prompts(classes)
    # It may be called in the middle of a training step, which must not notice.
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        without_autocast(device),
    ):
        torch.default_generator.manual_seed(0)  # always the same state: see npt.backbones.kept
        encoder = TextEncoder(load_clip(backbone, device), prompts).to(device)
        return unit_rows(encoder())


class ZeroshotCLIP(PromptTrainer):
    """Classifies by hand-written prompts; `train` only runs the test."""

    @classmethod
    def build_prompts(
        cls, cfg: Any, classes: Classes, clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        print(f'Prompts: "{classes.template}"')
        return PromptLearner(), hand_written_prompts(classes)

    def train(self) -> None:  # type: ignore[override]  # TrainerBase.train takes epochs
        if not self.cfg.TEST.NO_TEST:
            self.test()
