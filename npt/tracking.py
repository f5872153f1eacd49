"""Weights & Biases: the scalars, the config and the results of a training, where it is asked for.

TRAIN.WANDB names the project. Whatever fails here costs a warning and never the training.
"""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from npt import identity
from npt.files import atomic_write
from npt.names import trainer_name
from npt.randomness import random_state_kept

KEY = "TRAIN.WANDB"
ID_FILE = "wandb-id.txt"  # in the output folder: a run that goes on keeps its id
# Settings of wandb that the user's own environment overrides.
SETTINGS = {
    "WANDB_CONSOLE": "off",  # stdout is for the bars and the log file
    "WANDB_FINISH_TIMEOUT": "300",  # seconds; without it a dead network holds up a run for ever
}


def track(trainer: Any) -> None:
    """Let the trainer's writer of scalars also write to Weights & Biases, if its config asks so."""
    cfg = getattr(trainer, "cfg", None)
    asked = cfg is not None and cfg.TRAIN.get("WANDB", "")
    if asked and not isinstance(trainer._writer, TrackedWriter):
        trainer._writer = TrackedWriter(trainer._writer, _start(cfg))


def add_results(trainer: Any, split: str, figures: Mapping[str, float | None]) -> None:
    """Send the figures of a test; nothing where the trainer is not tracked."""
    writer = getattr(trainer, "_writer", None)
    if isinstance(writer, TrackedWriter):
        writer.add(split, figures, trainer.epoch)


class TrackedWriter:
    """A SummaryWriter whose scalars also go to a run of Weights & Biases.

    The steps of tests are epochs, and those of a training are batches, so each group of scalars
    ("train", "test") has its own axis, "train/step". The scalars of a step make one row.
    run: None sends nothing
    """

    def __init__(self, writer: Any, run: Any) -> None:
        self._writer, self._run = writer, run
        self._axes: set[str] = set()
        self._row: dict[str, Any] = {}

    def add_scalar(
        self, tag: str, value: Any, step: int | None = None, *more: Any, **named: Any
    ) -> None:
        self._writer.add_scalar(tag, value, step, *more, **named)
        group, _, name = tag.rpartition("/")
        self.add(group, {name: value}, step)

    def add(self, group: str, figures: Mapping[str, Any], step: int | None) -> None:
        """Add figures by name; None is left out."""
        prefix = f"{group}/" if group else ""
        axis = {} if step is None else {f"{prefix}step": step}
        if any(self._row.get(name) != value for name, value in axis.items()):
            self._send()
        if axis and prefix not in self._axes:
            self._axes.add(prefix)
            names, (own,) = f"{prefix}*", axis
            self._safely(lambda run: run.define_metric(names, step_metric=own))
        found = {f"{prefix}{name}": float(x) for name, x in figures.items() if x is not None}
        self._row |= {**axis, **found}

    def close(self) -> None:
        """Close both writers. If an exception ends the run, Weights & Biases shows it as failed."""
        self._writer.close()
        self._send()
        code = 0 if sys.exc_info()[0] is None else 1
        self._safely(lambda run: run.finish(exit_code=code))
        self._run = None

    def _send(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._safely(lambda run: run.log(row))

    def _safely(self, call: Callable[[Any], Any]) -> None:
        """Call something of wandb; after an error the run is not tracked any more."""
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            _warn(f"failed ({_reason(error)}): nothing more is sent")

    def __getattr__(self, name: str) -> Any:  # add_image, flush, ...
        if name == "_writer":  # before __init__, for example while unpickling
            raise AttributeError(name)
        return getattr(self._writer, name)


def _start(cfg: Any) -> Any:
    """The run of a training; None, with a warning, if there can be none."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import wandb

        init = wandb.init
    except (ImportError, AttributeError) as error:  # a folder wandb/ is imported as a module
        _warn(f"cannot be imported ({_reason(error)}): pip install wandb")
        return None
    folder = Path(cfg.OUTPUT_DIR)
    default = f"{trainer_name(cfg)} {cfg.DATASET.NAME} seed {cfg.SEED}"
    try:
        with random_state_kept():
            return init(
                project=cfg.TRAIN.WANDB,
                name=os.environ.get("WANDB_NAME") or default,
                id=os.environ.get("WANDB_RUN_ID") or _kept_id(folder),
                resume="allow",
                dir=os.environ.get("WANDB_DIR") or str(folder),
                config=identity.plain(cfg),
                reinit="create_new",  # a host may have a run of its own
            )
    except Exception as error:
        _warn(f"cannot start ({_reason(error)}): wandb login, or WANDB_MODE=offline")
        return None


def _kept_id(folder: Path) -> str:
    """The id of the run in this folder, made at its first start."""
    path = folder / ID_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = secrets.token_hex(4)
    with atomic_write(path) as file:
        file.write(made)
    return made


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn(what: str) -> None:
    text = f"{KEY} asks for Weights & Biases, which {what}. The training goes on without it."
    warnings.warn(text, stacklevel=3)
