"""Zero-shot CLIP with hand-written prompts (Radford et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npt.encoders import ClassPrompts, TextEncoder, load_clip
from npt.losses import unit_rows, without_autocast
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import PromptLearner, readable, tokenize

if TYPE_CHECKING:
    from clip.model import CLIP

TEMPLATE = "a photo of a {}."  # for a data set without a template


def template_of(dataset: Any) -> str:
    """The prompt template of a data set.

    That is its attribute `template`; for a host's data set without one, the template of the
    catalog's data set of the same name; else TEMPLATE.
    """
    template = getattr(dataset, "template", None)
    if isinstance(template, str):
        return template
    from npt.datasets.catalog import CATALOG

    row = CATALOG.get(type(dataset).__name__)
    return TEMPLATE if row is None else row.template


def hand_written_prompts(template: str, classnames: list[str]) -> ClassPrompts:
    """The template with each class name in place of {}."""
    return ClassPrompts(
        tokenize([template.format(readable(name)) for name in classnames], classnames)
    )


def frozen_text_features(backbone: str, dataset: Any, device: torch.device) -> Tensor:
    """Text features (K, E), of length 1, of a data set's hand-written prompts in a frozen CLIP.

    backbone: see `load_clip`. The CLIP is loaded for this call only. NPTError if it cannot be
    loaded.
    """
    prompts = hand_written_prompts(template_of(dataset), list(dataset.classnames))
    # It may be called in the middle of a training step, which must not notice.
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        without_autocast(device),
    ):
        torch.default_generator.manual_seed(0)  # always the same state: see npt.encoders.kept
        encoder = TextEncoder(load_clip(backbone, device), prompts).to(device)
        return unit_rows(encoder())


class ZeroshotCLIP(PromptTrainer):
    """Classifies by hand-written prompts; `train` only runs the test."""

    def build_prompts(
        self, classnames: list[str], clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        template = template_of(self.dm.dataset)
        print(f'Prompts: "{template}"')
        return PromptLearner(), hand_written_prompts(template, classnames)

    def train(self) -> None:  # type: ignore[override]  # TrainerBase.train takes epochs
        if not self.cfg.TEST.NO_TEST:
            self.test()
