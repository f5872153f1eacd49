"""One training or test in this process: its log file, its trainer, its checkpoint."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from npt import environment
from npt.errors import NPTError
from npt.files import locked, remove_leftovers
from npt.names import trainer_name

OF_A_RUN = re.compile(  # the names of files that a run writes
    r"result\.json|result-.+-[0-9a-f]{8}\.json|log\.txt(-[-0-9]+)?|wandb-id\.txt"
    r"|model-best\.pth\.tar|model\.pth\.tar-\d+|checkpoint"
    r"|epoch\d+-batch\d+\.pth\.tar|events\.out\.tfevents\..*|view\.html"
)


@contextmanager
def claimed(folder: Path, cfg: CfgNode, trains: bool, overwrite: bool = False) -> Iterator[None]:
    """Hold the lock of an output folder inside a `with` block: a folder is for one run.

    OtherRun if it is to be trained there, and the folder has another run's record.
    overwrite: delete what an earlier run has written there, instead
    """
    from npt import results

    with locked(folder / ".lock", f"running in {folder}"):
        remove_leftovers(folder)
        if trains and overwrite:
            remove_run(folder)
        elif trains:
            results.check_folder(folder, cfg)
        yield


def remove_run(folder: Path) -> None:
    """Delete what a run has written into its output folder; other files and folders stay."""
    written = [path for path in folder.glob("*") if OF_A_RUN.fullmatch(path.name)]
    models = {path.parent for path in folder.glob("*/checkpoint")}
    places = {*models, *(folder / name for name in ("resume", "tensorboard"))}
    for place in places:
        written += [path for path in place.glob("*") if OF_A_RUN.fullmatch(path.name)]
    for path in written:
        if path.is_file() or path.is_symlink():
            path.unlink()
    for place in places:
        with suppress(OSError):  # it has other files
            place.rmdir()


@contextmanager
def session(args: argparse.Namespace, cfg: CfgNode) -> Iterator[None]:
    """Seed, log file and the lines that open a run; the console is restored at the end."""
    import torch

    from dassl.utils import set_random_seed, setup_logger

    console = sys.stdout
    try:
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
        setup_logger(cfg.OUTPUT_DIR)
        if torch.cuda.is_available() and cfg.USE_CUDA:
            torch.backends.cudnn.benchmark = True
            torch.cuda.init()  # so that the log can name the GPU
        _banner("Arguments")
        for name, value in sorted(vars(args).items()):
            print(f"{name}: {value}")
        _banner("Config")
        print(cfg)
        print("Collecting env info ...")
        print(f"** System info **\n{_system_info()}\n\n{environment.lines()}\n")
        with _warnings_logged():
            yield
    finally:
        logger, sys.stdout = sys.stdout, console
        file = getattr(logger, "file", None)
        if logger is not console and file is not None:
            file.close()


@cache
def _system_info() -> str:
    from dassl.utils import collect_env_info

    return collect_env_info()  # asks several programs, so once a process


@contextmanager
def _warnings_logged() -> Iterator[None]:
    """Write warnings to the log file as well, inside a `with` block."""
    log = getattr(sys.stdout, "file", None)
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_and_log(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            show(message, category, *where, **more)
            if log is not None:
                log.write(f"{category.__name__}: {message}\n")

        warnings.showwarning = show_and_log
        yield


def _banner(title: str) -> None:
    line = f"** {title} **"
    print("\n".join(["*" * len(line), line, "*" * len(line)]))


def check_names(cfg: CfgNode) -> None:
    """Raise NPTError unless the trainer and the data set that the config names are registered.

    Our own are registered first, under names that no host has taken.
    """
    import npt.datasets
    import npt.trainers
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    npt.trainers.add_to_registry()
    npt.datasets.add_to_registry()
    for what, name, registry in (
        ("trainer", trainer_name(cfg), TRAINER_REGISTRY),
        ("data set", cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        known = registry.registered_names()
        if name not in known:
            raise NPTError(f"unknown {what} {name}; there are {', '.join(sorted(known))}")


def build(cfg: CfgNode) -> Any:
    """The trainer that the config names, with its data and model."""
    from dassl.engine import build_trainer

    check_names(cfg)
    return build_trainer(cfg)


def training_counts(cfg: CfgNode) -> list[int]:
    """The training images of each class that a run with this config has, by label."""
    from npt.host.thinning import class_counts

    return class_counts(dataset_of(cfg))


def dataset_of(cfg: CfgNode) -> Any:
    """The data set that a run with this config has. Nothing is printed."""
    from dassl.data import data_manager
    from dassl.utils import set_random_seed
    from npt.randomness import random_state_kept

    check_names(cfg)
    with silent(), random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself says them
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        return data_manager.build_dataset(cfg)


@contextmanager
def silent() -> Iterator[None]:
    """A `with` block in which the lines for the log of a run are not printed."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def load(trainer: Any, directory: str, epoch: int | None = None) -> None:
    """Load a run's checkpoint into a built trainer. NPTError where it does not fit."""
    try:
        trainer.load_model(directory, epoch=epoch)
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        cfg = trainer.cfg
        raise NPTError(
            f"the checkpoint in {directory} is not one of {trainer_name(cfg)} with backbone "
            f"{cfg.MODEL.BACKBONE.NAME} on these classes: {' '.join(str(error).split()[3:])}"
        ) from error
