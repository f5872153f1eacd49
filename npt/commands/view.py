"""`npt view RUN`: one HTML page of what a run has learned, and where it fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from npt import results
from npt.errors import report
from npt.flags import Parser
from npt.pages.extra import report_extra


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt view",
        description="Write a page of a run: classes, confusions, mistakes as pictures, features, "
        "the course of the training, calibration and settings. It is one HTML file that needs "
        "no network.",
        epilog="What needs the test images or CLIP is left out, and said to be, where they are "
        "gone.",
        example="npt view output/mine\nnpt view output/mine --output mine.html",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run")
    add("--output", type=Path, metavar="FILE", help="the page (default: RUN/view.html)")
    add("--root", default="", help="folder of the data sets, if it is not where it was")
    add("--backbone", default="", help="CLIP's weights, if they are not where they were")
    return parser


def run(args: argparse.Namespace) -> Path:
    """Write the page, and say what it does not show; returns its path."""
    results.of_run(args.run)  # an error now, before seconds of imports
    with report_extra():
        from npt.view import page
        from npt.view.gather import gather

        view = gather(args.run, args.root, args.backbone)
        path = page.write(view, args.output or args.run / page.NAME)
    for sentence in (*view.notes, *(f"Not shown: {part}" for part in view.missing)):
        print(sentence, file=sys.stderr)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        print(f"Page in {run(args)}")
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
