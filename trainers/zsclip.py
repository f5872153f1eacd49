"""Zero-shot CLIP with hand-written prompts (Radford et al., 2021)."""

from typing import Any

import torch
from torch import Tensor

from npt.encoders import ClassPrompts, TextEncoder, load_clip
from npt.encoders.openai import CLIP
from npt.losses import unit_rows
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import PromptLearner, readable, tokenize

TEMPLATE = "a photo of a {}."  # for a data set that brings none


def template_of(dataset: Any) -> str:
    """The prompt template of a data set: its own `template`, else TEMPLATE."""
    return getattr(dataset, "template", TEMPLATE)


def hand_written_prompts(template: str, classnames: list[str]) -> ClassPrompts:
    return ClassPrompts(
        tokenize([template.format(readable(name)) for name in classnames], classnames)
    )


@torch.no_grad()
def frozen_text_features(backbone: str, dataset: Any, device: torch.device) -> Tensor:
    """(K, D) features of length 1 of a data set's hand-written prompts in the frozen CLIP.

    Loads the CLIP for that and lets go of it. NPTError where `backbone` cannot be loaded.
    """
    clip_model = load_clip(backbone, device)
    prompts = hand_written_prompts(template_of(dataset), list(dataset.classnames))
    return unit_rows(TextEncoder(clip_model, prompts).to(device)())


class ZeroshotCLIP(PromptTrainer):
    """Learns nothing: training goes straight to the test."""

    def build_prompts(
        self, classnames: list[str], clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        template = template_of(self.dm.dataset)
        print(f'Prompts: "{template}"')
        return PromptLearner(), hand_written_prompts(template, classnames)

    def train(self) -> None:
        if not self.cfg.TEST.NO_TEST:
            self.test()
