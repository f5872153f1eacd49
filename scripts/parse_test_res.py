"""Averages the test results of a run over its seeds, from the log files.

    python scripts/parse_test_res.py output/base2new/MaPLe/eurosat
    python scripts/parse_test_res.py output/base2new/MaPLe --multi-exp

reads the logs in DIR/seed*/: log.txt, and then the dated logs of later starts of the same run in
order of time. The result is the last `* accuracy: 89.1%` after a line `Finish training`. With
`--test-log` it is the last one after `=> result` in a log of --eval-only, or in any log if there is
none of --eval-only. With `--multi-exp`, each folder in DIR is a run; the script averages each run,
and then the averages of all runs. It prints the mean and the population standard deviation, or with
`--ci95` the half-width of the 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

END_OF_TRAINING = ("Finish training", "Finished training")
START_OF_RESULT = ("=> result",)
TRAINING = re.compile(r"epoch \[\d+/\d+\]|eval_only: False")  # in the log of a training


class UserError(Exception):
    """One sentence for the user."""


def read_result(lines: Sequence[str], keyword: str, signals: Sequence[str]) -> float | None:
    """The last result named `keyword` after a line in `signals`; None if there is none."""
    result = re.compile(rf"\* {re.escape(keyword)}: ([-+.\deE]+)%")
    started, found = False, None
    for line in lines:
        started = started or line.strip() in signals
        match = result.search(line) if started else None
        if match:
            found = float(match.group(1))
    return found


def logs_of(seed: Path) -> dict[Path, list[str]]:
    """The lines of log.txt, and of the dated logs of later starts of the run in order of time."""
    paths = [seed / "log.txt", *sorted(seed.glob("log.txt-*"), key=natural)]
    return {
        path: path.read_text(encoding="utf-8", errors="replace").splitlines()
        for path in paths
        if path.is_file()
    }


def trains(lines: Sequence[str]) -> bool:
    """Whether a log is that of a training."""
    return any(line.strip() in END_OF_TRAINING or TRAINING.match(line.strip()) for line in lines)


def result_of_training(seed: Path, keyword: str) -> tuple[Path, float] | None:
    """The log with the result of a training, and the result; None if it has not ended.

    Epochs after the end belong to a new training in the same folder.
    """
    last = None
    for path, lines in logs_of(seed).items():
        result = read_result(lines, keyword, END_OF_TRAINING)
        if result is not None:
            last = path, result
        elif any(line.startswith("epoch [") for line in lines):
            last = None
    return last


def result_of_test(seed: Path, keyword: str) -> tuple[Path, float] | None:
    """The log with the result of an evaluation, else of any test, and the result."""
    logs = logs_of(seed)
    results = {path: read_result(lines, keyword, START_OF_RESULT) for path, lines in logs.items()}
    found = [(path, result) for path, result in results.items() if result is not None]
    tests = [(path, result) for path, result in found if not trains(logs[path])]
    return (tests or found or [None])[-1]


def natural(path: Path) -> list[int | str]:
    """A sort key that puts seed10 after seed2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_run(directory: Path, keyword: str, test_log: bool) -> list[float]:
    """The result of every seed of a run. UserError if no seed has a result."""
    print(f"Parsing files in {directory}")
    results = []
    for seed in sorted(directory.glob("seed*"), key=natural):
        found = (result_of_test if test_log else result_of_training)(seed, keyword)
        if found is None:
            print(f"file: {seed / 'log.txt'}. {keyword}: no result", file=sys.stderr)
            continue
        log, result = found
        print(f"file: {log}. {keyword}: {result:.2f}%")
        results.append(result)
    if not results:
        raise UserError(
            f'no log in {directory}/seed*/ has "* {keyword}: ...%" after '
            f'"{(START_OF_RESULT if test_log else END_OF_TRAINING)[0]}": check the folder and '
            "--keyword" + ("" if test_log else ", or use --test-log for logs of --eval-only runs")
        )
    return results


def spread(results: Sequence[float], ci95: bool) -> float:
    """The population standard deviation, or the half-width of the 95 % confidence interval."""
    std = statistics.pstdev(results)
    return 1.96 * std / len(results) ** 0.5 if ci95 else std


def summarise(title: str, keyword: str, results: Sequence[float], ci95: bool) -> float:
    """Print the mean and the spread of the results; returns the mean."""
    mean = statistics.fmean(results)
    print("===")
    print(title)
    print(f"* {keyword}: {mean:.2f}% +- {spread(results, ci95):.2f}%")
    print("===")
    return mean


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="the folder with seed1, seed2, ...")
    parser.add_argument("--ci95", action="store_true", help="95 %% interval instead of the std")
    parser.add_argument("--test-log", action="store_true", help="the logs are of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="DIR has one folder per run")
    parser.add_argument("--keyword", default="accuracy", help="the result (default: accuracy)")
    args = parser.parse_args(argv)
    try:
        if not args.directory.is_dir():
            raise UserError(f"there is no folder {args.directory}: use the one with the seeds")
        runs = [args.directory]
        if args.multi_exp:
            runs = sorted((p for p in args.directory.iterdir() if p.is_dir()), key=natural)
            if not runs:
                raise UserError(f"{args.directory} has no folders: --multi-exp needs one per run")
        means = []
        for run in runs:
            results = read_run(run, args.keyword, args.test_log)
            title = f"Summary of directory: {run}"
            means.append(summarise(title, args.keyword, results, args.ci95))
        if args.multi_exp:
            print("Average performance")
            print(f"* {args.keyword}: {statistics.fmean(means):.2f}%")
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
