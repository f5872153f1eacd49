"""`npt predict RUN IMAGES...`: the classes of images, as a table, CSV or JSON lines."""

from __future__ import annotations

import argparse
import csv
import glob
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from npt import results
from npt.errors import NPTError, report
from npt.flags import Parser
from npt.text_file import mark_of, read_lines

if TYPE_CHECKING:
    from npt.classifier import Classifier

EXIT_UNREADABLE = 1
NONE = "(none)"  # the class of an image that fits none


class Row(NamedTuple):
    """What is said of an image: its classes, the best first, with probabilities."""

    image: str
    classes: list[str]
    probabilities: list[float]
    fits: bool | None  # whether the best one reaches the threshold; None without a threshold


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt predict",
        description="Classify images by the model of a run.",
        epilog="The exit code is 0, or 1 if an image could not be read: it is named, and the "
        "others are classified.",
        example="npt predict output/mine photo.jpg holiday/ 'scans/*.tif' --top 3\n"
        "npt predict output/mine new/ --classes classes.txt --format csv > new.csv\n"
        "find / -name '*.jpg' | npt predict output/mine - --format jsonl",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run")
    add(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders (with the folders in them), patterns as 'a/*.jpg'; - reads "
        "names of files from the input, one a line, or as `find -print0` writes them",
    )
    add("--top", type=int, default=3, metavar="K", help="classes to name (default: %(default)s)")
    add("--format", choices=WRITERS, default="table", help="default: %(default)s")
    add(
        "--threshold",
        type=float,
        metavar="P",
        help=f"mark an image as {NONE} if no class has this probability (0 to 1)",
    )
    add("--classes", metavar="FILE", help="other class names for the learned prompts, one a line")
    add("--backbone", default="", help="CLIP's weights, if they are not where they were")
    return parser


# --------------------------------------------------------------------------- images
def named(words: Iterable[str], names: TextIO) -> Iterator[str]:
    """The image files that words of the command line name; `names` is read for the word "-".

    A file comes as often as it is named. NPTError for a folder or a pattern without an image.
    """
    from npt.datasets.listing import image_files

    for word in words:
        path = Path(word).expanduser()
        if word == "-":
            yield from listed(names.read())
        elif path.is_dir():
            yield from _found(image_files(path), f"the folder {word} has no image file in it")
        elif not path.exists() and glob.has_magic(word):
            yield from _found(_fitting(str(path)), f"no image file fits the pattern {word}")
        else:
            yield str(path)


def listed(text: str) -> list[str]:
    """The file names in a list: one a line, or with a NUL after each (`find -print0`).

    text: as Python reads UTF-8, with surrogates for other bytes
    """
    content = text.encode("utf-8", "surrogateescape")
    mark, encoding = mark_of(content)
    text = content[len(mark) :].decode(encoding, "replace" if mark else "surrogateescape")
    if "\0" in text:
        return [name for name in text.split("\0") if name]
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _fitting(pattern: str) -> list[str]:
    """The files that fit a pattern, and the image files in folders that fit it, each once."""
    from npt.datasets.listing import image_files

    found = sorted(glob.glob(pattern, recursive=True))
    each = (image_files(Path(name)) if os.path.isdir(name) else [name] for name in found)
    return list(dict.fromkeys(os.path.normpath(name) for names in each for name in names))


def _found(files: Sequence[str], otherwise: str) -> Sequence[str]:
    if not files:
        raise NPTError(f"{otherwise}: name others")
    return files


def rows(
    classifier: Classifier,
    files: Sequence[str],
    top: int,
    threshold: float | None,
    streams: bool = False,
) -> Iterator[Row | NPTError]:
    """What the classifier says of each file, in order; an error for one that cannot be read.

    streams: whether the rows are printed while others are still computed
    """
    import torch
    from tqdm import tqdm

    from npt.classifier.decoding import decoded

    both = sys.stdout.isatty() and sys.stderr.isatty()  # then a bar would be between the lines
    bar = tqdm(total=len(files), unit=" images", disable=True if both and streams else None)
    with bar:
        for batch in decoded(files, classifier):
            good = [image for _, image in batch if not isinstance(image, NPTError)]
            found = iter(classifier.predict_batch(torch.stack(good), top) if good else ())
            bar.update(len(batch))
            for file, image in batch:
                if isinstance(image, NPTError):
                    yield image
                else:
                    said = next(found)
                    fits = None if threshold is None else said.probabilities[0] >= threshold
                    yield Row(file, said.classes, said.probabilities, fits)


# --------------------------------------------------------------------------- output
def write_table(found: Iterable[Row], out: TextIO) -> None:
    """One line an image; also of those that were classified when the program was interrupted."""
    from tabulate import tabulate

    lines: list[list[str]] = []
    try:
        for row in found:
            pairs = zip(row.classes, row.probabilities, strict=True)
            cells = [f"{name} {100 * p:.1f}%" for name, p in pairs]
            cells[0] = f"{NONE} {cells[0]}" if row.fits is False else cells[0]
            lines.append([row.image, *cells])
    finally:
        width = max(map(len, lines), default=0)
        headers = ["image", *(str(rank) for rank in range(1, width))]
        if lines:
            print(tabulate(lines, headers=headers, disable_numparse=True), file=out)


def write_csv(found: Iterable[Row], out: TextIO) -> None:
    """One line an image: image, class, probability, class_2, probability_2, ..., fits."""
    writer = csv.writer(out, lineterminator="\n")
    for number, row in enumerate(found):
        fits = [] if row.fits is None else ["yes" if row.fits else "no"]
        if not number:
            ranks = range(1, len(row.classes) + 1)
            names = [f"{name}_{k}" if k > 1 else name for k in ranks for name in COLUMNS]
            writer.writerow(["image", *names, *(["fits"] if fits else [])])
        pairs = zip(row.classes, row.probabilities, strict=True)
        cells = [cell for name, p in pairs for cell in (name, f"{p:.6g}")]
        writer.writerow([row.image, *cells, *fits])
        out.flush()


COLUMNS = ("class", "probability")


def write_json(found: Iterable[Row], out: TextIO) -> None:
    """One JSON object a line: image, classes, probabilities, and with a threshold fits."""
    for row in found:
        entry = {name: value for name, value in row._asdict().items() if value is not None}
        print(json.dumps(entry), file=out, flush=True)


WRITERS: dict[str, Callable[[Iterable[Row], TextIO], None]] = {
    "table": write_table,
    "csv": write_csv,
    "jsonl": write_json,
}


# --------------------------------------------------------------------------- program
def run(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise NPTError(f"--top {args.top}: ask for at least one class")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise NPTError(f"--threshold {args.threshold}: a probability is from 0 to 1")
    names = class_names(args.classes) if args.classes else None
    files = list(named(args.images, sys.stdin))
    results.of_run(Path(args.run).expanduser())  # an error now, before seconds of imports
    from npt.classifier import load

    classifier = load(args.run, backbone=args.backbone)
    if names:
        classifier = classifier.with_classes(names)
    failed = 0

    def good() -> Iterator[Row]:
        nonlocal failed
        streams = args.format != "table"
        for row in rows(classifier, files, args.top, args.threshold, streams):
            if isinstance(row, NPTError):
                failed += 1
                print(f"error: {row}", file=sys.stderr)
            else:
                yield row

    WRITERS[args.format](good(), sys.stdout)
    if failed:
        print(f"{failed} of {len(files)} images could not be read", file=sys.stderr)
    return EXIT_UNREADABLE if failed else 0


def class_names(file: str) -> list[str]:
    """The lines of a file, without empty ones. NPTError if there are none."""
    try:
        names = read_lines(Path(file))
    except (OSError, ValueError) as error:
        raise NPTError(f"{file} (--classes) cannot be read as a text: {error}") from error
    if not names:
        raise NPTError(f"{file} (--classes) has no class name: write one on each line")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # file names of any bytes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return run(args)
    except Exception as error:
        return report(error)


if __name__ == "__main__":
    sys.exit(main())
