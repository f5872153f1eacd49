"""The gradient norm of each term of NPT's loss, before training or in its course.

For each batch, computes the norms of the gradients of L_CLIP, w1 L_LC and w2 L_MI: with respect to
all learned parameters, and with respect to the prompt vectors only. With SGD, the effect of a term
is proportional to its gradient, so the ratios of these norms show the effect of weights and
reductions (docs/reduction.md).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import islice
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from npt.errors import NPTError
from npt.flags import setup_cfg
from npt.host.features import FeatureTap, unwrap
from npt.losses import REDUCTIONS
from npt.measure import Measured
from npt.remedied import Remedied
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


def weighted_terms(
    trainer: Any, batch: Any, reductions: Sequence[str] = REDUCTIONS
) -> Iterator[tuple[str, str, Tensor]]:
    """(reduction, term, weighted loss) of one batch, for each of the reductions.

    The reduction is "-" for terms that do not depend on it.
    """
    settings = trainer.cfg.TRAINER.NPT.clone()
    settings.defrost()
    image, label = trainer.parse_batch_train(batch)
    remedied = trainer.remedied(batch) if isinstance(trainer, Remedied) else nullcontext()
    with FeatureTap(trainer.model) as tap, remedied:
        output = trainer.model(image, label)
        features = tap.take()
        loss = output if output.dim() == 0 else nn.functional.cross_entropy(output.float(), label)
    yield "-", "L_CLIP", loss
    run = trainer.knowledge() if isinstance(trainer, Measured) else Run(settings)
    run.settings = settings
    found = batch_of(features, label, run)
    for reduction in ("-", *reductions):
        if reduction != "-":
            settings.REDUCTION = reduction
        for term in active_terms(settings):
            if term.weight_in(settings) > 0 and term.reduces == (reduction != "-"):
                title = f"{term.weight.lower()} {term.symbol or term.name}"
                yield reduction, title, term.weight_in(settings) * term.function(found)


def norms(
    trainer: Any, batches: int, reductions: Sequence[str] = REDUCTIONS
) -> list[dict[str, Any]]:
    """A row for each term and reduction: loss and gradient norms, averaged over the batches."""
    parameters, is_prompt = learned(trainer.model)
    trainer.set_model_mode("train")
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for batch in islice(trainer.train_loader_x, batches):
        for reduction, term, loss in weighted_terms(trainer, batch, reductions):
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
    trainer = _trainer(setup_cfg(args), batches)
    before = trainer.measure("test") if isinstance(trainer, Measured) else {}
    return norms(trainer, batches), before


def course(args: argparse.Namespace, batches: int) -> list[dict[str, Any]]:
    """`norms` with the run's own reduction before training and after each epoch, as `epoch`.

    The run is trained in a temporary folder; its order of images and its figures do not change.
    """
    cfg = setup_cfg(args).clone()
    cfg.defrost()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR, cfg.TEST.NO_TEST = folder, True
        cfg.freeze()
        trainer = _trainer(cfg, batches)
        own = [cfg.TRAINER.NPT.REDUCTION]

        def record(epoch: int) -> None:
            with torch.random.fork_rng(devices=[]):
                rows.extend({"epoch": epoch, **row} for row in norms(trainer, batches, own))

        after_epoch = trainer.after_epoch

        def after() -> None:
            after_epoch()
            record(trainer.epoch + 1)

        record(0)
        trainer.after_epoch = after
        with _silent():
            trainer.train()
    return rows


def _trainer(cfg: Any, batches: int) -> Any:
    """The trainer of a config. NPTError if it learns nothing, or there is no batch to look at."""
    from dassl.utils import set_random_seed

    if batches < 1:
        raise NPTError(f"--batches must be at least 1, not {batches}")
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with _silent():
        trainer = build(cfg)
    if not learned(trainer.model)[0]:
        raise NPTError(
            f"the trainer {cfg.TRAINER.NAME} learns nothing, so it has no gradients: use another "
            "--trainer"
        )
    return trainer


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def render(rows: list[dict[str, Any]], before: Results, style: str = "simple") -> str:
    """A table with the ratio of each gradient norm to that of L_CLIP; below it the measures."""
    text = tabulate(with_ratios(rows), headers="keys", floatfmt=".4g", tablefmt=style)
    values = ((heading, before.get(name)) for name, heading in headings().items())
    measures = [f"{heading} {value:.4f}" for heading, value in values if value is not None]
    if measures:
        text += f"\n\nBefore training, on the test images: {', '.join(measures)}"
    return text


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `ratio`, the gradient norm over that of L_CLIP in the same epoch."""
    clip = {row.get("epoch"): row["gradient"] for row in rows if row["term"] == "L_CLIP"}
    return [
        {**row, "ratio": row["gradient"] / (clip[row.get("epoch")] or float("nan"))} for row in rows
    ]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios of a `course` by epoch, a line for each term. Needs the extra "report"."""
    from matplotlib.figure import Figure

    from npt.experiments.figures import BESIDE, COLOURS, MARKERS, styled, write_image

    with styled():
        figure = Figure(figsize=(6.0, 2.8))
        ax = figure.subplots()
        terms = dict.fromkeys(row["term"] for row in rows if row["term"] != "L_CLIP")
        for place, term in enumerate(terms):
            of_term = [row for row in with_ratios(rows) if row["term"] == term]
            epochs, ratios = ([row[key] for row in of_term] for key in ("epoch", "ratio"))
            look: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "ms": 4, "lw": 1}
            ax.plot(epochs, ratios, label=term, color=COLOURS[place % len(COLOURS)], **look)
        ax.set_xlabel("epochs trained")
        ax.set_ylabel("gradient norm / that of L_CLIP")
        ax.set_yscale("log")
        ax.legend(**BESIDE)
    write_image(figure, path)
