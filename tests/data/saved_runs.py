"""Runs on disk without a training: a record, and a checkpoint of random prompts."""

from pathlib import Path

import torch
from trainer_kit import build, config

from npt import identity, results
from npt.session import silent

INPUT = ["INPUT.TRANSFORMS", ("normalize",), "INPUT.INTERPOLATION", "bicubic"]


def saved_run(
    folder: Path, trainer: str, classnames: list[str], *pairs: object, backbone: str = "tiny",
    temperature: float | None = None,
) -> Path:  # fmt: skip
    """The folder of a run of `trainer`; pairs: KEY VALUE pairs of its config."""
    pairs = ("DATASET.NAME", "CustomFolder", *INPUT, *pairs)
    cfg = config(trainer, backbone, *pairs, output=str(folder))
    torch.manual_seed(0)
    with silent():
        made = build(cfg, classnames)
        learner = made.model.prompt_learner
        with torch.no_grad():
            for p in learner.parameters():
                p.add_(0.1 * torch.randn(p.shape))
        if list(learner.parameters()):
            made.save_model(0, str(folder))
    record = {
        "task": results.TRAINING,
        "trainer": trainer,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "config": identity.plain(cfg),
        "classnames": classnames,
        "results": {"test": {"temperature": temperature}},
        "finished": True,
    }
    results.write(folder / results.RESULT, record)
    return folder
