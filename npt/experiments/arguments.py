"""The command line of `python -m npt.experiments`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from npt.flags import Parser, add_flags

EXAMPLES = {  # what follows the name of each command
    "run": "configs/experiments/mini/all_methods.yaml --out output/methods --jobs 2",
    "reproduce": "table1 --suite mini --seeds 1",
    "status": "output/mini",
    "report": "output/mini --html",
    "collect": "output --csv runs.csv",
    "estimate": "configs/experiments/mini/all_methods.yaml --out output/methods",
    "table": "output/methods --style github",
    "grid": "output/reduction --rows TRAINER.NPT.W1 --column TRAINER.NPT.W2",
    "figure": "output/methods --projection tsne",
    "features": "output/methods",
    "gradients": "--trainer MaPLeNPT --seed 1 --config-file configs/trainers/MaPLe/tiny.yaml "
    "--dataset-config-file configs/datasets/mini_flowers.yaml DATASET.NUM_SHOTS 4",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m npt.experiments", description="Run and report experiments.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, **how: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, example=f"{parser.prog} {name} {EXAMPLES[name]}", **how)

    run = command(
        "run",
        help="execute an experiment; completed runs are not repeated",
        usage="%(prog)s EXPERIMENT --out DIR [--jobs N] [--slurm PARTITION ...] [KEY VALUE ...]",
        epilog="KEY VALUE: a field of the experiment in lower case (seeds 1,2), or a config key in "
        "upper case for every run.",
    )
    run.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    run.add_argument("--out", required=True, type=_folder, help="folder of its runs")
    _add_executor(run)

    reproduce = command(
        "reproduce",
        help="tables and figures of the paper; completed runs are not repeated",
        usage="%(prog)s NAME [--suite paper|mini] [--root DATA] [--out DIR] "
        "[--slurm PARTITION ...] [KEY VALUE ...]",
        epilog="KEY VALUE: config keys in upper case, for every run.",
    )
    add = reproduce.add_argument
    add("names", type=_words, metavar="NAME", help="table1, ..., fig5, several with commas, or all")
    add(
        "--suite",
        choices=("paper", "mini"),
        default="paper",
        help="paper (default), or mini: small data sets, made here",
    )
    add("--root", default=os.environ.get("DATA", ""), help="folder of the data sets (or $DATA)")
    add("--out", type=_folder, help="folder of the runs (default: output/SUITE)")
    add("--seeds", type=_integers, default=(), help="seeds, as 1,2,3 (default)")
    add("--methods", type=_words, default=(), help="methods to run, as MaPLe,MaPLe+NPT")
    add("--datasets", type=_words, default=(), help="data sets to run, as eurosat,dtd")
    add(
        "--ratios",
        type=_numbers,
        default=(),
        help="imbalance ratios, as 1,0.25,0.0625 (not of parts at tau 1)",
    )
    add(
        "--settings",
        choices=("paper", "published"),
        default="",
        help="published: other methods as their own papers train them; paper: as the NPT paper; "
        "default: as in its tables, which is published at tau 1 and paper below",
    )
    add(
        "--control",
        action="store_true",
        help="tables: below tau 1, also each method on as many images in all, balanced",
    )
    add("--dry-run", action="store_true", help="list the runs, with state, time and disk")
    _add_executor(reproduce)

    status = command("status", help="what the runs of a folder are doing")
    status.add_argument("folder", type=Path, help="the --out folder of `run` or `reproduce`")

    report_ = command("report", help="tables and figures of what `reproduce` has run")
    report_.add_argument("folder", type=Path, help="the --out folder")
    report_.add_argument(
        "--html", action="store_true", help="also one page for a browser, that needs nothing else"
    )

    collect = command("collect", help="one row of a CSV file for each run in a folder")
    collect.add_argument("folder", type=Path, help="an output folder, of this package or of CoOp")
    collect.add_argument("--csv", type=Path, help="the file (default: FOLDER/runs.csv)")

    estimate = command(
        "estimate",
        help="estimate the time of the remaining runs from a few steps of each",
        usage="%(prog)s EXPERIMENT --out DIR [KEY VALUE ...]",
    )
    estimate.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    estimate.add_argument("--out", required=True, type=_folder, help="folder of its runs")

    table = command("table", help="mean and standard deviation over seeds")
    table.add_argument("folder", type=Path, help="folder of the runs")
    table.add_argument("--by", nargs="+", default=["label"], help="columns that identify a row")
    table.add_argument("--split", default="test", help="split of the results: test or val")
    table.add_argument("--style", default="simple", help="style of tabulate: simple, github, ...")
    table.add_argument("--csv", type=Path, help="also write the results of every run to this file")

    grid = command("grid", help="one result for every setting of a grid")
    grid.add_argument("folder", type=Path, help="folder of the runs")
    grid.add_argument("--value", default="accuracy", help="result in result.json to show")
    grid.add_argument("--rows", nargs="+", required=True, help="keys of the grid for the rows")
    grid.add_argument("--column", required=True, help="key of the grid for the columns")
    grid.add_argument("--part", default="base", help="evaluation of the results: base, new, ...")
    grid.add_argument("--split", default="test", help="split of the results: test or val")
    grid.add_argument("--style", default="simple", help="style of tabulate: simple, github, ...")
    grid.add_argument("--digits", type=int, default=2, help="digits after the decimal point")

    figure = command("figure", help="text and image features in two dimensions")
    _add_selection(figure)
    figure.add_argument("--classes", type=int, default=8, help="number of classes to show")
    figure.add_argument(
        "--projection",
        choices=("pca", "tsne"),
        default="pca",
        help="pca (default): the principal plane; tsne: t-SNE, seeded",
    )
    figure.add_argument("--output", type=Path, help="output file (default: FOLDER/features.png)")

    features = command(
        "features", help="text and image features as .npz and for TensorBoard's projector"
    )
    _add_selection(features)
    features.add_argument("--output", type=Path, help="folder (default: FOLDER/features)")

    gradients = command("gradients", help="gradient norm of each term of the loss")
    gradients.add_argument(
        "--course", action="store_true", help="before training and after each epoch"
    )
    gradients.add_argument("--plot", type=Path, help="PNG or PDF file for a figure of the course")
    gradients.add_argument("--batches", type=int, default=10, help="number of training batches")
    gradients.add_argument("--style", default="simple", help="style of tabulate: simple, github")
    add_flags(gradients)
    return parser


# The flags of --slurm; each is a field of `npt.experiments.running.slurm.Cluster`.
OF_JOBS: dict[str, tuple[str, type, str]] = {
    "time": ("T", str, "time limit of a job (default: 4:00:00), after which it starts again"),
    "mem": ("M", str, "memory of a job, as 16G (default: the cluster's)"),
    "gpus": ("N", str, "GPUs of a job, as 1 or a100:2 (default: none)"),
    "account": ("A", str, "account to which the jobs are charged"),
    "max-jobs": ("N", int, "jobs at a time (default: 100)"),
}


def _add_executor(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where runs are executed."""
    words = "runs at a time (default: one per GPU, or per core; in a job: one per GPU, or 1)"
    parser.add_argument("--jobs", type=int, metavar="N", help=words)
    group = parser.add_argument_group("on a cluster (docs/cluster.md)")
    group.add_argument("--slurm", metavar="PARTITION", help="as jobs of SLURM in this partition")
    for name, (metavar, kind, words) in OF_JOBS.items():
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=words)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """The flags that choose runs of an experiment; see `npt.experiments.features.choose`."""
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--labels", nargs="+", help="trainers to show, in order (default: all)")
    parser.add_argument("--dataset", help="data set to show (default: the first)")
    parser.add_argument("--ratio", type=float, help="imbalance ratio (default: the smallest)")
    parser.add_argument("--seed", type=int, help="seed to show (default: the smallest)")


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is not a folder: name another one")
    return path


def _words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    found = tuple(filter(None, (word.strip() for word in text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError("it is empty: leave it out, or name something")
    return found


def _integers(text: str) -> tuple[int, ...]:
    return _numbers_of(text, int, "whole numbers from 0, as 1,2,3")


def _numbers(text: str) -> tuple[float, ...]:
    return _numbers_of(text, float, "numbers, as 1,0.05")


def _numbers_of(text: str, kind: Any, allowed: str) -> tuple:
    try:
        found = tuple(map(kind, _words(text)))
    except (ValueError, argparse.ArgumentTypeError):
        found = ()
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be different {allowed}")
    return found
