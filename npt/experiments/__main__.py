"""The program `python -m npt.experiments`; each of its commands has a `--help`.

reproduce   the tables and figures of the paper     run, estimate   an experiment of your own
status      what its runs are doing
report      the pages of their results              table, grid     results of an experiment
collect     the results of any folder as CSV        figure, features, gradients
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from npt.errors import NPTError, report
from npt.experiments.arguments import OF_JOBS, build_parser
from npt.experiments.running.stopping import Preempted, exit_code
from npt.files import atomic_write
from npt.pages.extra import check_report_extra, report_extra
from npt.stopping import preempted, run_program


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


def run_command(args: argparse.Namespace) -> int:
    from npt.experiments.reading import load_experiment
    from npt.experiments.running.console import carry_out

    experiment = load_experiment(args.experiment, args.opts)
    executor = _executor(args, args.out)
    return carry_out(experiment.title, experiment.runs(args.out), args.out, executor)


def estimate_command(args: argparse.Namespace) -> int:
    from npt.experiments.reading import load_experiment
    from npt.experiments.running.validation import validate

    runs = load_experiment(args.experiment, args.opts).runs(args.out)
    for dataset, words in validate(runs).items():
        raise NPTError(f"{dataset}: {words}")
    from npt.experiments import estimate

    print(estimate.report(runs, args.out))
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    from npt.experiments.forecast import read_costs
    from npt.experiments.reading import Selection
    from npt.experiments.reproduce import folder_of, reproduce

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
    if not args.dry_run:
        check_report_extra()
    executor = _executor(args, out, read_costs(folder_of(args.suite)))
    code = reproduce(args.names, args.suite, out, selection, executor, args.dry_run)
    if not args.dry_run:
        with report_extra():
            from npt.experiments.report import page
        print(f"Report in {page.write(out)}")
    return code


def status_command(args: argparse.Namespace) -> int:
    from npt.experiments import status

    print(status.report(args.folder))
    return 0


def report_command(args: argparse.Namespace) -> int:
    with report_extra():
        from npt.experiments.report import html, page
    report_ = page.gather(args.folder)
    print(f"Report in {page.write(args.folder, report_)}")
    if args.html:
        print(f"Page in {html.write(report_, args.folder / page.FOLDER)}")
    return 0


def collect_command(args: argparse.Namespace) -> int:
    with report_extra():
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
    with report_extra():
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
    with report_extra():
        from npt.experiments import tables
    frame = tables.collect(args.folder)
    table = tables.grid(frame, args.value, args.rows, args.column, args.part, args.split)
    print(tables.render_grid(table, args.style, args.digits))
    return 0


def figure_command(args: argparse.Namespace) -> int:
    from npt.experiments import features

    chosen = features.choose(args.folder, args.labels, args.dataset, args.ratio, args.seed)
    with report_extra():
        from npt.experiments import figures
    path = args.output or args.folder / "features.png"
    with report_extra():
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
    if args.plot and not args.course:
        raise NPTError("--plot draws the gradients in the course of a training: add --course")
    from npt.experiments import gradients

    if args.course:
        rows = gradients.course(args, args.batches)
        print(gradients.render(rows, {}, args.style))
        if args.plot:
            with report_extra():
                gradients.plot(rows, args.plot)
            print(f"Figure in {args.plot}")
    else:
        print(gradients.render(*gradients.study(args, args.batches), args.style))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_command,
    "reproduce": reproduce_command,
    "status": status_command,
    "report": report_command,
    "collect": collect_command,
    "estimate": estimate_command,
    "table": table_command,
    "grid": grid_command,
    "figure": figure_command,
    "features": features_command,
    "gradients": gradients_command,
}


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
            return COMMANDS[args.command](args)
    except KeyboardInterrupt as stop:
        print(f"stopped: {stop or 'the same command starts again'}", file=sys.stderr)
        return exit_code(stop)
    except Exception as error:
        return report(error)


if __name__ == "__main__":
    run_program(main)
