"""`npt export RUN OUT`: the model of a run for programs without this package."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npt import results
from npt.commands.predict import class_names
from npt.errors import report
from npt.flags import Parser

FORMATS = {  # those of npt.export, which imports torch
    "onnx": "images to probabilities, for ONNX Runtime",
    "safetensors": "the class features",
    "prompts": "the prompts, for this CLIP in transformers or open_clip",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt export",
        description="Write the model of a run as files that need nothing of this package, with "
        "classifier.json: classes, preprocessing, and where it is from.",
        epilog="; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        + ". The ONNX file is compared with PyTorch on test images before it is kept.",
        example="npt export output/mine mine-onnx\n"
        "npt export output/mine mine-new --classes classes.txt --format onnx\n"
        "npt export output/mine mine-prompts --format safetensors prompts",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run")
    add("out", metavar="OUT", help="folder to write; an earlier export there is replaced")
    add(
        "--format",
        nargs="+",
        choices=FORMATS,
        help="default: onnx and safetensors (CoCoOp, which has no class features: onnx)",
    )
    add("--classes", metavar="FILE", help="other class names for the learned prompts, one a line")
    add("--backbone", default="", help="CLIP's weights, if they are not where they were")
    return parser


def run(args: argparse.Namespace) -> None:
    names = class_names(args.classes) if args.classes else None
    results.of_run(Path(args.run).expanduser())  # an error now, before seconds of imports
    from npt.classifier import load
    from npt.export import default_formats, export

    classifier = load(args.run, device="cpu", backbone=args.backbone)
    if names:
        classifier = classifier.with_classes(names)
    out = Path(args.out).expanduser()
    content = export(classifier, out, args.format or default_formats(classifier))
    for line in lines(out, content):
        print(line)


def lines(out: Path, content: dict[str, Any]) -> list[str]:
    """What was exported, for the console."""
    said = [
        f"{content['run']['trainer']}, CLIP {content['backbone']['name']}, "
        f"{len(content['classes'])} classes, in float32"
    ]
    for name, file in content["files"].items():
        said.append(f"{out / name}  {file['bytes']:,} bytes")
    said.append(f"{out / 'classifier.json'}  classes, preprocessing")
    if "onnx" in content:
        check = content["onnx"]["check"]
        sizes = ", ".join(map(str, check["batches"]))
        found = check["largest_differences"].items()
        said.append(f"checked with ONNX Runtime on {check['images']} in batches of {sizes}:")
        said.append("largest difference " + ", ".join(f"{x:.1e} in {name}" for name, x in found))
    return said


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            run(args)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
