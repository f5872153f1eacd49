"""`npt test RUN`: test a run's model again, also on other images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from npt.flags import Parser, parse_args, recorded_cfg

OWN_IMAGES = "CustomFolder"
ALL_FOR_TESTING = "CustomTest"  # the data set of a folder of which every image is a test image


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt test",
        usage="npt test RUN [--root ROOT] [--output-dir DIR] [--load-epoch N] [KEY VALUE ...]",
        description="Test the model of a run: on its own test images, or on all images of another "
        "folder with a folder for each class.",
        epilog="Classes may be others than those of the training: their names are read by the "
        "learned prompts. The record is result.json of DIR; in the folder of the run it is "
        "result-....json beside the record of the training.",
        example="npt test output/mine\nnpt test output/mine --root new_images\n"
        "npt test output/mine DATASET.SUBSAMPLE_CLASSES new --output-dir output/mine-new",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run")
    add("--root", default="", help="folder of the test images (default: those of the run)")
    add("--output-dir", default="", help="folder of log and record (default: RUN)")
    add("--load-epoch", type=int, help="epoch of the checkpoint (default: the best or the last)")
    add("--backbone", default="", help="CLIP's weights, if they are not where they were")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and values")
    return parser


def run(args: argparse.Namespace) -> None:
    from npt import cli
    from npt.classifier import SavedRun

    saved = SavedRun.open(args.run)
    pairs = ["OUTPUT_DIR", args.output_dir or str(saved.folder), "RESUME", ""]
    if args.root:
        pairs += ["DATASET.ROOT", os.path.abspath(os.path.expanduser(args.root))]
        if saved.cfg.DATASET.NAME == OWN_IMAGES:
            pairs += ["DATASET.NAME", ALL_FOR_TESTING]
    if args.backbone:
        pairs += ["MODEL.BACKBONE.NAME", args.backbone]
    cfg = recorded_cfg(saved.record, [*pairs, *args.opts])
    words = ["--eval-only", *(["--model-dir", str(saved.model)] if saved.learns else [])]
    if args.load_epoch is not None:
        words += ["--load-epoch", str(args.load_epoch)]
    cli.run(parse_args(words), cfg)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit codes are those of train.py."""
    from npt import cli

    args = build_parser().parse_intermixed_args(argv)
    return cli.exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
