"""`python -m npt.experiments run|estimate|table|grid|figure|gradients`; each has a `--help`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npt.errors import NPTError, report
from npt.experiments.stopping import Preempted, exit_code
from npt.files import atomic_write, locked, remove_leftovers
from npt.flags import Parser, add_flags
from npt.stopping import preempted, run_program

EXIT_FAILED_RUNS = 1


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m npt.experiments", description="Run and report experiments.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser(
        "run",
        help="execute an experiment; completed runs are not repeated",
        usage="%(prog)s EXPERIMENT --out DIR [--jobs N] [KEY VALUE ...]",
        epilog="KEY VALUE: a field of the experiment in lower case (seeds 1,2), or a config key in "
        "upper case for every run.",
    )
    run.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    run.add_argument("--out", required=True, type=Path, help="folder of its runs")
    run.add_argument("--jobs", type=int, help="parallel runs (default: one per GPU, or per core)")
    run.set_defaults(do=run_command)

    estimate = commands.add_parser(
        "estimate",
        help="estimate the time of the remaining runs from a few steps of each",
        usage="%(prog)s EXPERIMENT --out DIR [KEY VALUE ...]",
    )
    estimate.add_argument("experiment", help="yaml of the experiment, see configs/experiments")
    estimate.add_argument("--out", required=True, type=Path, help="folder of its runs")
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
    figure.add_argument("folder", type=Path, help="folder of the runs")
    figure.add_argument("--labels", nargs="+", help="trainers to show, in order (default: all)")
    figure.add_argument("--dataset", help="data set to show (default: the first)")
    figure.add_argument("--ratio", type=float, help="imbalance ratio (default: the smallest)")
    figure.add_argument("--seed", type=int, help="seed to show (default: the smallest)")
    figure.add_argument("--classes", type=int, default=8, help="number of classes to show")
    figure.add_argument("--output", type=Path, help="output file (default: FOLDER/features.png)")
    figure.set_defaults(do=figure_command)

    gradients = commands.add_parser("gradients", help="gradient norm of each term before training")
    gradients.add_argument("--batches", type=int, default=10, help="number of training batches")
    gradients.add_argument("--style", default="simple", help="style of tabulate: simple, github")
    add_flags(gradients)
    gradients.set_defaults(do=gradients_command)
    return parser


def run_command(args: argparse.Namespace) -> int:
    from npt.experiments import plan, runner, state

    if args.jobs is not None and args.jobs < 1:
        raise NPTError(f"--jobs is the number of runs at a time, at least 1, not {args.jobs}")
    experiment = plan.load_experiment(args.experiment, args.opts)
    runs = experiment.runs(args.out)
    with locked(args.out / ".lock", f"running an experiment in {args.out}"):
        for run in runs:
            for folder in (run.folder, *map(run.output, run.evaluations)):
                remove_leftovers(folder)
            for words in state.damages(run.folder, [e.name for e in run.evaluations]).values():
                print(f"warning: {words} This is done now.", file=sys.stderr)
            runner.check_record(run)
        waiting = [run for run in runs if not state.is_complete(run)]
        print(experiment.title or args.experiment)
        print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them complete in {args.out}")
        try:
            runner.validate(waiting)
            outcomes = _execute(runs, len(waiting), args.jobs)
        except KeyboardInterrupt as stop:
            done = sum(map(state.is_complete, runs))
            raise type(stop)(
                f"{done} of {len(runs)} runs are complete in {args.out}; the same command goes on"
            ) from None
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        where = f" (see {outcome.log})" if outcome.log and outcome.log.exists() else ""
        print(f"failed: {outcome.run.name}: {outcome.error}{where}", file=sys.stderr)
    return EXIT_FAILED_RUNS if failed else 0


def estimate_command(args: argparse.Namespace) -> int:
    from npt.experiments import estimate, plan, runner

    experiment = plan.load_experiment(args.experiment, args.opts)
    runner.validate(experiment.runs(args.out))
    print(estimate.report(experiment, args.out))
    return 0


def _execute(runs: Sequence[Any], total: int, jobs: int | None) -> list[Any]:
    """Execute the runs with a progress bar on a terminal, or else with one line for each run."""
    from tqdm import tqdm

    from npt.experiments import runner

    done = itertools.count(1)
    with tqdm(total=total, unit="run", disable=None, dynamic_ncols=True) as bar:

        def show(outcome: runner.Outcome) -> None:
            text = f"{outcome.run.name}: {_headline(outcome)}"
            if bar.disable:
                print(f"[{next(done)}/{total}] {outcome.seconds:5.1f} s  {text}", flush=True)
            bar.set_postfix_str(text)
            bar.update()

        return runner.execute(runs, jobs, show)


def _headline(outcome: Any) -> str:
    """The test accuracy of each evaluation, or FAILED."""
    from npt.experiments import state

    run = outcome.run
    if outcome.error:
        return "FAILED"
    parts = state.figures(run.folder, [e.name for e in run.evaluations], run.train)
    return " ".join(
        f"{name} {found['test'].get('accuracy') or 0:.1f}"
        for name, found in parts.items()
        if "test" in found
    )


def table_command(args: argparse.Namespace) -> int:
    with _report_extra():
        from npt.experiments import tables
    frame = tables.collect(args.folder)
    print(tables.render(tables.summarise(frame, args.by, args.split), args.style))
    if args.csv:
        try:
            with atomic_write(args.csv) as file:
                frame.to_csv(file, index=False)
        except OSError as error:
            reason = error.strerror or error
            raise NPTError(f"--csv {args.csv} cannot be written ({reason})") from error
        print(f"\n{len(frame)} rows in {args.csv}")
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
        from npt.experiments import figures
    chosen = figures.choose(args.folder, args.labels, args.dataset, args.ratio, args.seed)
    path = args.output or args.folder / "features.png"
    figures.plot(chosen, path, args.classes)
    print(f"Figure in {path}")
    return 0


def gradients_command(args: argparse.Namespace) -> int:
    from npt.experiments import gradients

    print(gradients.render(*gradients.study(args, args.batches), args.style))
    return 0


@contextmanager
def _report_extra() -> Iterator[None]:
    """NPTError with the command to install if pandas or matplotlib is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("pandas", "matplotlib"):
            raise
        raise NPTError(
            f"tables and figures need {error.name}: pip install 'npt-clip[report]'"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    # argparse cannot parse KEY VALUE pairs that follow a positional argument and flags.
    args, pairs = parser.parse_known_args(argv)
    takes_pairs = args.command in ("run", "estimate")
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
