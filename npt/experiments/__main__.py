"""The program `python -m npt.experiments`; each of its commands has a `--help`.

reproduce   the tables and figures of the paper     run, estimate   an experiment of your own
status      what its runs are doing
report      the pages of their results              table, grid     results of an experiment
collect     the results of any folder as CSV        figure, gradients
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npt.errors import NPTError, report
from npt.experiments.running.stopping import Preempted, exit_code
from npt.files import atomic_write
from npt.flags import Parser, add_flags
from npt.stopping import preempted, run_program

PACKAGES_OF_REPORTS = {  # module -> package
    **{name: name for name in ("jinja2", "matplotlib", "pandas", "scipy")},
    "sklearn": "scikit-learn",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m npt.experiments", description="Run and report experiments.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser(
        "run",
        help="execute an experiment; completed runs are not repeated",
        usage="%(prog)s EXPERIMENT --out DIR [--jobs N] [--slurm PARTITION ...] [KEY VALUE ...]",
        epilog="KEY VALUE: a field of the experiment in lower case (seeds 1,2), or a config key in "
        "upper case for every run.",
    )
    run.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    run.add_argument("--out", required=True, type=_folder, help="folder of its runs")
    _add_executor(run)
    run.set_defaults(do=run_command)

    reproduce = commands.add_parser(
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
    reproduce.set_defaults(do=reproduce_command)

    status = commands.add_parser("status", help="what the runs of a folder are doing")
    status.add_argument("folder", type=Path, help="the --out folder of `run` or `reproduce`")
    status.set_defaults(do=status_command)

    report_ = commands.add_parser("report", help="tables and figures of what `reproduce` has run")
    report_.add_argument("folder", type=Path, help="the --out folder")
    report_.add_argument(
        "--html", action="store_true", help="also one page for a browser, that needs nothing else"
    )
    report_.set_defaults(do=report_command)

    collect = commands.add_parser("collect", help="one row of a CSV file for each run in a folder")
    collect.add_argument("folder", type=Path, help="an output folder, of this package or of CoOp")
    collect.add_argument("--csv", type=Path, help="the file (default: FOLDER/runs.csv)")
    collect.set_defaults(do=collect_command)

    estimate = commands.add_parser(
        "estimate",
        help="estimate the time of the remaining runs from a few steps of each",
        usage="%(prog)s EXPERIMENT --out DIR [KEY VALUE ...]",
    )
    estimate.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    estimate.add_argument("--out", required=True, type=_folder, help="folder of its runs")
    estimate.set_defaults(do=estimate_command)

    table = commands.add_parser("table", help="mean and standard deviation over seeds")
    table.add_argument("folder", type=Path, help="folder of the runs")
    table.add_argument("--by", nargs="+", default=["label"], help="columns that identify a row")
    table.add_argument("--split", default="test", help="split of the results: test or val")
    table.add_argument("--style", default="simple", help="style of tabulate: simple, github, ...")
    table.add_argument("--csv", type=Path, help="also write the results of every run to this file")
    table.set_defaults(do=table_command)

    grid = commands.add_parser("grid", help="one result for every setting of a grid")
    grid.add_argument("folder", type=Path, help="folder of the runs")
    grid.add_argument("--value", default="accuracy", help="result in result.json to show")
    grid.add_argument("--rows", nargs="+", required=True, help="keys of the grid for the rows")
    grid.add_argument("--column", required=True, help="key of the grid for the columns")
    grid.add_argument("--part", default="base", help="evaluation of the results: base, new, ...")
    grid.add_argument("--split", default="test", help="split of the results: test or val")
    grid.add_argument("--style", default="simple", help="style of tabulate: simple, github, ...")
    grid.add_argument("--digits", type=int, default=2, help="digits after the decimal point")
    grid.set_defaults(do=grid_command)

    figure = commands.add_parser("figure", help="text and image features in two dimensions")
    _add_selection(figure)
    figure.add_argument("--classes", type=int, default=8, help="number of classes to show")
    figure.add_argument(
        "--projection",
        choices=("pca", "tsne"),
        default="pca",
        help="pca (default): the principal plane; tsne: t-SNE, seeded",
    )
    figure.add_argument("--output", type=Path, help="output file (default: FOLDER/features.png)")
    figure.set_defaults(do=figure_command)

    features = commands.add_parser(
        "features", help="text and image features as .npz and for TensorBoard's projector"
    )
    _add_selection(features)
    features.add_argument("--output", type=Path, help="folder (default: FOLDER/features)")
    features.set_defaults(do=features_command)

    gradients = commands.add_parser("gradients", help="gradient norm of each term of the loss")
    gradients.add_argument(
        "--course", action="store_true", help="before training and after each epoch"
    )
    gradients.add_argument("--plot", type=Path, help="PNG or PDF file for a figure of the course")
    gradients.add_argument("--batches", type=int, default=10, help="number of training batches")
    gradients.add_argument("--style", default="simple", help="style of tabulate: simple, github")
    add_flags(gradients)
    gradients.set_defaults(do=gradients_command)
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


def _executor(args: argparse.Namespace, out: Path, costs: Any = None) -> Any:
    """The Executor that the flags ask for. NPTError if they make none.

    costs: the constants of the runs' times, where they are known
    """
    given = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in OF_JOBS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.slurm is None and given:
        name = next(iter(given)).replace("_", "-")
        raise NPTError(f"--{name} is of jobs on a cluster: add --slurm PARTITION, or leave it out")
    from npt.experiments.running import pool, slurm

    if args.slurm is None:
        return pool.Local(args.jobs)
    return slurm.Cluster(out, args.slurm, jobs=args.jobs, costs=costs, **given)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """The flags that choose runs of an experiment; see `npt.experiments.features.choose`."""
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--labels", nargs="+", help="trainers to show, in order (default: all)")
    parser.add_argument("--dataset", help="data set to show (default: the first)")
    parser.add_argument("--ratio", type=float, help="imbalance ratio (default: the smallest)")
    parser.add_argument("--seed", type=int, help="seed to show (default: the smallest)")


def run_command(args: argparse.Namespace) -> int:
    from npt.experiments.reading import load_experiment
    from npt.experiments.running.console import carry_out

    experiment = load_experiment(args.experiment, args.opts)
    executor = _executor(args, args.out)
    return carry_out(experiment.title, experiment.runs(args.out), args.out, executor)


def estimate_command(args: argparse.Namespace) -> int:
    from npt.experiments import estimate
    from npt.experiments.reading import load_experiment
    from npt.experiments.running.validation import validate

    runs = load_experiment(args.experiment, args.opts).runs(args.out)
    for dataset, words in validate(runs).items():
        raise NPTError(f"{dataset}: {words}")
    print(estimate.report(runs, args.out))
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    from npt.experiments.forecast import read_costs
    from npt.experiments.reading import Selection
    from npt.experiments.reproduce import folder_of, reproduce

    with _report_extra():
        from npt.experiments.report import page

    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    for key in pairs:
        if key != key.upper():
            raise NPTError(f"{key} is not a config key, which has upper case (--help lists flags)")
    if len(args.opts) % 2:
        raise NPTError(f"{args.opts[-1]} at the end of the command line has no value")
    root = {"DATASET.ROOT": args.root} if args.root else {}
    selection = Selection(
        methods=args.methods,
        datasets=args.datasets,
        ratios=args.ratios,
        seeds=args.seeds,
        settings=args.settings,
        control=args.control,
        opts={**root, **pairs},
    )
    out = args.out or Path("output", args.suite)
    executor = _executor(args, out, read_costs(folder_of(args.suite)))
    code = reproduce(args.names, args.suite, out, selection, executor, args.dry_run)
    if not args.dry_run:
        print(f"Report in {page.write(out)}")
    return code


def status_command(args: argparse.Namespace) -> int:
    from npt.experiments import status

    print(status.report(args.folder))
    return 0


def report_command(args: argparse.Namespace) -> int:
    with _report_extra():
        from npt.experiments.report import html, page
    report_ = page.gather(args.folder)
    print(f"Report in {page.write(args.folder, report_)}")
    if args.html:
        print(f"Page in {html.write(report_, args.folder / page.FOLDER)}")
    return 0


def collect_command(args: argparse.Namespace) -> int:
    with _report_extra():
        from npt.experiments import collect
    frame = collect.collect(args.folder)
    _write_csv(frame, args.csv or args.folder / "runs.csv", "--csv")
    return 0


def _write_csv(frame: Any, path: Path, option: str) -> None:
    try:
        with atomic_write(path) as file:
            frame.to_csv(file, index=False)
    except OSError as error:
        reason = error.strerror or error
        raise NPTError(f"{option} {path} cannot be written ({reason})") from error
    print(f"{len(frame)} rows in {path}")


def table_command(args: argparse.Namespace) -> int:
    with _report_extra():
        from npt.experiments import tables
    frame = tables.collect(args.folder)
    print(tables.render(tables.summarise(frame, args.by, args.split), args.style))
    if args.csv:
        print()
        _write_csv(frame, args.csv, "--csv")
    return 0


def grid_command(args: argparse.Namespace) -> int:
    if not 0 <= args.digits <= 20:
        raise NPTError(f"--digits must be from 0 to 20, not {args.digits}")
    with _report_extra():
        from npt.experiments import tables
    frame = tables.collect(args.folder)
    table = tables.grid(frame, args.value, args.rows, args.column, args.part, args.split)
    print(tables.render_grid(table, args.style, args.digits))
    return 0


def figure_command(args: argparse.Namespace) -> int:
    with _report_extra():
        from npt.experiments import features, figures
    chosen = features.choose(args.folder, args.labels, args.dataset, args.ratio, args.seed)
    path = args.output or args.folder / "features.png"
    with _report_extra():
        figures.plot(chosen, path, args.classes, args.projection)
    print(f"Figure in {path}")
    return 0


def features_command(args: argparse.Namespace) -> int:
    from npt.experiments import features

    out = args.output or args.folder / "features"
    wanted = {key: getattr(args, key) for key in ("labels", "dataset", "ratio", "seed")}
    for path in features.export(args.folder, out, **wanted):
        print(f"Features in {path}")
    print(f"To look at them: tensorboard --logdir {out}")
    return 0


def gradients_command(args: argparse.Namespace) -> int:
    from npt.experiments import gradients

    if args.course:
        rows = gradients.course(args, args.batches)
        print(gradients.render(rows, {}, args.style))
        if args.plot:
            with _report_extra():
                gradients.plot(rows, args.plot)
            print(f"Figure in {args.plot}")
    elif args.plot:
        raise NPTError("--plot draws the gradients in the course of a training: add --course")
    else:
        print(gradients.render(*gradients.study(args, args.batches), args.style))
    return 0


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


@contextmanager
def _report_extra() -> Iterator[None]:
    """NPTError with the command to install if pandas or matplotlib is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in PACKAGES_OF_REPORTS:
            raise
        raise NPTError(
            f"tables and figures need {PACKAGES_OF_REPORTS[name]}: pip install 'npt-clip[report]'"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    # argparse cannot parse KEY VALUE pairs that follow a positional argument and flags.
    args, pairs = parser.parse_known_args(argv)
    takes_pairs = args.command in ("run", "estimate", "reproduce")
    wrong = [word for word in pairs if word.startswith("--") or not takes_pairs]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if takes_pairs:
        args.opts = pairs
    try:
        with preempted(Preempted):
            return args.do(args)
    except KeyboardInterrupt as stop:
        print(f"stopped: {stop or 'the same command starts again'}", file=sys.stderr)
        return exit_code(stop)
    except Exception as error:
        return report(error)


if __name__ == "__main__":
    run_program(main)
