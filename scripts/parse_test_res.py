"""Averages the test results of a run over its seeds, from the log files.

    python scripts/parse_test_res.py output/base2new/MaPLe/eurosat
    python scripts/parse_test_res.py output/base2new/MaPLe --multi-exp

reads DIR/seed*/log.txt: the last `* accuracy: 89.1%` after the line `Finish training`, or with
`--test-log` (for logs of --eval-only runs) after `=> result`. With `--multi-exp`, each folder in
DIR is a run; the script averages each run, and then the averages of all runs. It prints the mean
and the population standard deviation, or with `--ci95` the half-width of the 95 % confidence
interval.
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


class UserError(Exception):
    """One sentence for the user."""


def read_result(log: Path, keyword: str, signals: Sequence[str]) -> float | None:
    """The last result named `keyword` after a line in `signals`; None if there is none."""
    result = re.compile(rf"\* {re.escape(keyword)}: ([-+.\deE]+)%")
    started, found = False, None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        started = started or line.strip() in signals
        match = result.search(line) if started else None
        if match:
            found = float(match.group(1))
    return found


def logs_of(seed: Path) -> list[Path]:
    """log.txt, then the dated logs of later starts of the run, the newest first."""
    dated = sorted(seed.glob("log.txt-*"), key=lambda path: path.name, reverse=True)
    return [path for path in [seed / "log.txt", *dated] if path.is_file()]


def natural(path: Path) -> list[int | str]:
    """A sort key that puts seed10 after seed2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_run(directory: Path, keyword: str, test_log: bool) -> list[float]:
    """The result of every seed of a run. UserError if no seed has a result."""
    print(f"Parsing files in {directory}")
    signals = START_OF_RESULT if test_log else END_OF_TRAINING
    results = []
    for seed in sorted(directory.glob("seed*"), key=natural):
        for log in logs_of(seed):
            result = read_result(log, keyword, signals)
            if result is not None:
                print(f"file: {log}. {keyword}: {result:.2f}%")
                results.append(result)
                break
        else:
            print(f"file: {seed / 'log.txt'}. {keyword}: no result", file=sys.stderr)
    if not results:
        raise UserError(
            f'no log in {directory}/seed*/ has "* {keyword}: ...%" after "{signals[0]}": check '
            "the folder and --keyword"
            + ("" if test_log else ", or use --test-log for logs of --eval-only runs")
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
