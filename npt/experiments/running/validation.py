"""What is checked before any run starts: configs, names, data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from npt.errors import sentence
from npt.experiments.plan import Evaluation, Run, dataset_name
from npt.flags import parse_args, setup_cfg
from npt.session import check_names


def validate(runs: Sequence[Run], say: Callable[[str], None] = print) -> dict[str, str]:
    """Check the config of every trainer and data set, and build each data set once.

    So errors are raised before any run starts, and workers do not generate or index the same data
    set at the same time. Returns, for each data set that cannot be used, a sentence that says why.
    """
    from dassl.data.datasets import build_dataset

    kinds: dict[tuple, tuple[Run, Evaluation]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            kinds.setdefault((run.config, run.opts, evaluation.dataset), (run, evaluation))
    configs: dict[str, Any] = {}
    for run, evaluation in kinds.values():
        cfg = setup_cfg(parse_args(run.argv(evaluation)))
        check_names(cfg)
        configs.setdefault(evaluation.dataset, cfg)
    problems = {}
    for dataset, cfg in configs.items():
        say(f"Preparing {dataset_name(dataset)}")
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            try:
                build_dataset(cfg)
            except Exception as error:
                words = sentence(error)
                if words is None:  # a bug
                    raise
                problems[dataset] = words
    return problems


def without(runs: Sequence[Run], datasets: Collection[str]) -> list[Run]:
    """The runs without evaluations on these data sets, and without trainings on them."""
    found = []
    for run in runs:
        kept = tuple(e for e in run.evaluations if e.dataset not in datasets)
        if run.dataset not in datasets:
            found.append(replace(run, evaluations=kept))
    return found
