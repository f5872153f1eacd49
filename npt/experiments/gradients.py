"""The gradient norm of each term of NPT's loss before training.

For each batch, computes the norms of the gradients of L_CLIP, w1 L_LC and w2 L_MI: with respect to
all learned parameters, and with respect to the prompt vectors only. With SGD, the effect of a term
is proportional to its gradient, so the ratios of these norms show the effect of weights and
reductions (docs/reduction.md).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import islice
from statistics import mean
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from npt.errors import NPTError
from npt.flags import setup_cfg
from npt.host.features import FeatureTap, unwrap
from npt.losses import REDUCTIONS
from npt.measure import Measured
from npt.results import Results
from npt.session import build
from npt.terms import Run, active_terms, headings
from npt.trainer import batch_of

PROMPT_VECTORS = ("ctx", "compound_prompts_text")


def learned(model: nn.Module) -> tuple[list[Tensor], list[bool]]:
    """The learned parameters, and for each of them whether it is a prompt vector."""
    named = [(name, p) for name, p in unwrap(model).named_parameters() if p.requires_grad]
    is_prompt = [
        name.partition("prompt_learner.")[2].startswith(PROMPT_VECTORS) for name, _ in named
    ]
    return [p for _, p in named], is_prompt


def weighted_terms(trainer: Any, batch: Any) -> Iterator[tuple[str, str, Tensor]]:
    """(reduction, term, weighted loss) of one batch.

    The reduction is "-" for terms that do not depend on it.
    """
    settings = trainer.cfg.TRAINER.NPT.clone()
    settings.defrost()
    image, label = trainer.parse_batch_train(batch)
    with FeatureTap(trainer.model) as tap:
        output = trainer.model(image, label)
        features = tap.take()
    loss = output if output.dim() == 0 else nn.functional.cross_entropy(output.float(), label)
    yield "-", "L_CLIP", loss
    run = trainer.knowledge() if isinstance(trainer, Measured) else Run(settings)
    run.settings = settings
    found = batch_of(features, label, run)
    for reduction in ("-", *REDUCTIONS):
        if reduction != "-":
            settings.REDUCTION = reduction
        for term in active_terms(settings):
            if term.reduces == (reduction != "-"):
                title = f"{term.weight.lower()} {term.symbol or term.name}"
                yield reduction, title, term.weight_in(settings) * term.function(found)


def norms(trainer: Any, batches: int) -> list[dict[str, Any]]:
    """A row for each term and reduction: loss and gradient norms, averaged over the batches."""
    parameters, is_prompt = learned(trainer.model)
    trainer.set_model_mode("train")
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for batch in islice(trainer.train_loader_x, batches):
        for reduction, term, loss in weighted_terms(trainer, batch):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            squares = [0.0 if g is None else g.double().square().sum().item() for g in gradients]
            prompts = sum(s for s, chosen in zip(squares, is_prompt, strict=True) if chosen)
            row = (loss.item(), sum(squares) ** 0.5, prompts**0.5)
            rows.setdefault((reduction, term), []).append(row)
    return [
        {
            "reduction": reduction,
            "term": term,
            "loss": mean(r[0] for r in values),
            "gradient": mean(r[1] for r in values),
            "at prompt vectors": mean(r[2] for r in values),
        }
        for (reduction, term), values in rows.items()
    ]


def study(args: argparse.Namespace, batches: int) -> tuple[list[dict[str, Any]], Results]:
    """`norms`, and the measures on the test images, for the run described by train.py's flags."""
    from dassl.utils import set_random_seed

    if batches < 1:
        raise NPTError(f"--batches must be at least 1, not {batches}")
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        trainer = build(cfg)
    if not learned(trainer.model)[0]:
        raise NPTError(
            f"the trainer {cfg.TRAINER.NAME} learns nothing, so it has no gradients: use another "
            "--trainer"
        )
    before = trainer.measure("test") if isinstance(trainer, Measured) else {}
    return norms(trainer, batches), before


def render(rows: list[dict[str, Any]], before: Results, style: str = "simple") -> str:
    """A table with the ratio of each gradient norm to that of L_CLIP; below it the measures."""
    clip = next(row for row in rows if row["term"] == "L_CLIP")
    table = [{**row, "ratio": row["gradient"] / (clip["gradient"] or float("nan"))} for row in rows]
    text = tabulate(table, headers="keys", floatfmt=".4g", tablefmt=style)
    values = ((heading, before.get(name)) for name, heading in headings().items())
    measures = [f"{heading} {value:.4f}" for heading, value in values if value is not None]
    if measures:
        text += f"\n\nBefore training, on the test images: {', '.join(measures)}"
    return text
