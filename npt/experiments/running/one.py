"""One run: its training and its evaluations, in this process.

The files in a run's folder are its state (`npt.experiments.state`): a test with results in
result.json is not repeated, and a training that was interrupted goes on from its last step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npt import identity
from npt.errors import NPTError, sentence
from npt.experiments.plan import Evaluation, Run, dataset_name
from npt.experiments.running.progress import doing
from npt.experiments.state import (
    RECORD,
    config_digest,
    has_checkpoint,
    has_trained,
    is_complete,
    missing_splits,
    read_run,
    remove_checkpoints,
    remove_damaged,
    remove_result,
)
from npt.files import write_record
from npt.flags import parse_args, setup_cfg
from npt.later import later
from npt.results import RESULT
from npt.session import build, load, remove_run, session

if TYPE_CHECKING:
    from npt.backbones import kept
    from npt.experiments.running import frozen
    from npt.trainers import checkpoints
else:  # a process that only starts others, or lists runs, shall not wait for torch
    kept, frozen = later("npt.backbones.kept"), later("npt.experiments.running.frozen")
    checkpoints = later("npt.trainers.checkpoints")


def _is_used(run: Run) -> bool:
    """Whether a run has written anything but run.json into the folder."""
    folders = [run.output(evaluation) for evaluation in run.evaluations]
    return any(
        (folder / RESULT).exists() or has_checkpoint(folder) or (folder / "resume").exists()
        for folder in folders
    )


def execute_run(run: Run) -> None:
    """Train and test one run in this process; what its folder has on record is not repeated."""
    with kept.clip_kept():
        execute_alone(run)


def execute_alone(run: Run) -> None:
    """As `execute_run`, with a CLIP that is loaded for each of its parts and not kept."""
    known = bool(read_run(run.folder)) or not _is_used(run)
    remove_damaged(run)
    if known or not run.train:
        _claim(run, known)
    first = run.evaluations[0]
    if run.train and not is_complete(run):
        if known:
            _check_models(run)
        if missing_splits(run, first):
            with _trainer(run, first) as trainer:
                doing(first.name, trainer)
                trainer.train()  # goes on from the last step; after the last one it only tests
                _claim(run, known)
                _test(trainer, run, first)
    errors = []
    for evaluation in run.evaluations:
        if missing_splits(run, evaluation):
            remove_result(run.output(evaluation))  # it may be of a model that was there before
            try:
                with _trainer(run, evaluation) as trainer:
                    load(trainer, str(run.output(first)) if run.train else "")
                    _test(trainer, run, evaluation)
            except Exception as error:  # the other evaluations do not depend on this one
                errors.append(error)
    if errors:
        raise errors[0]
    if not run.keep_checkpoints:
        remove_checkpoints(run)


def _claim(run: Run, known: bool) -> None:
    """Write run.json. In a folder that had none, figures of evaluations do not count.

    Those of a training count after `train`, which compares the configuration there with its own.
    """
    for evaluation in () if known else run.evaluations[run.train :]:
        remove_result(run.output(evaluation))
    configs = {e.name: setup_cfg(parse_args(run.argv(e))) for e in run.evaluations}
    digests = {name: config_digest(identity.plain(cfg)) for name, cfg in configs.items()}
    earlier, record = read_run(run.folder), {**run.record(), "configs": digests}
    # Evaluations that another experiment has asked for stay on record.
    both = {key: {**earlier.get(key, {}), **record[key]} for key in ("commands", "configs")}
    write_record(run.folder / RECORD, {**record, **both})


def _check_models(run: Run) -> None:
    """Delete a training whose model is damaged or gone, so that it starts anew.

    An unfinished training keeps its best model beside what it goes on from, and needs both.
    """
    folder = run.output(run.evaluations[0])
    cfg = setup_cfg(parse_args(run.argv(run.evaluations[0])))
    best = cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST
    name = checkpoints.BEST if best else f"model.pth.tar-{cfg.OPTIM.MAX_EPOCH}"
    models = list(folder.glob(f"*/{name}"))
    began = has_checkpoint(folder) or (folder / "resume").is_dir()
    problem = next(filter(None, map(_damage, models)), None)
    if problem is None and not models and (has_trained(folder) or (best and began)):
        problem = f"{folder} has no {name} any more"
    if problem is not None:
        # sys.stderr is the run's log.
        print(f"warning: {problem}: {run.name} is trained anew", file=sys.__stderr__)
        remove_run(folder)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a sentence."""
    from dassl.utils import load_checkpoint

    try:
        load_checkpoint(str(path))
        return None
    except Exception as error:  # damaged bytes lead to many types
        return (sentence(error) or f"{path} is damaged ({error})").rstrip(".")


@contextmanager
def _trainer(run: Run, evaluation: Evaluation) -> Iterator[Any]:
    """The run's trainer with an evaluation's data. Its output goes to the evaluation's log."""
    doing(evaluation.name)
    args = parse_args(run.argv(evaluation))
    cfg = setup_cfg(args)
    with session(args, cfg):
        yield frozen.keep_features(build(cfg), run.out / frozen.FEATURES)


def _test(trainer: Any, run: Run, evaluation: Evaluation) -> None:
    for split in missing_splits(run, evaluation):
        trainer.test(split)
        if split in missing_splits(run, evaluation):
            raise NPTError(
                f"testing the {split} images of {dataset_name(evaluation.dataset)} gave no results "
                f"in {run.output(evaluation) / 'result.json'}: check that the data set has this "
                "split, or remove it from evaluate"
            )
