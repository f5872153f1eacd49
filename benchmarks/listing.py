"""Time and memory to list a data set of ImageNet's size: the first time, again, and in a run.

    python benchmarks/listing.py                   # 1000 classes of 1281 images, about a minute
    python benchmarks/listing.py --images 50       # a quick test

Creates a tree of empty files (hard links, which need no space for contents) in a temporary folder,
or in --root, and deletes it at the end. Each step runs in a new process and is timed after the
imports. Its memory is the peak of the process minus the memory before the step.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _checkout  # noqa: F401  first: npt of this checkout
from tabulate import tabulate

import npt  # noqa: F401  makes `dassl` importable


def make(root: Path, classes: int, images: int) -> None:
    """imagenet/ with `images` training and 50 validation images for each class."""
    for part, count in (("train", images), ("val", 50)):
        for k in range(classes):
            folder = root / "imagenet" / "images" / part / f"n{k:08d}"
            folder.mkdir(parents=True)
            first = f"{folder}/{folder.name}_0.JPEG"
            open(first, "x").close()
            for i in range(1, count):
                os.link(first, f"{folder}/{folder.name}_{i}.JPEG")
            os.utime(folder, (0, 0))  # folders that changed recently would be listed again
    names = [f"n{k:08d} class {k}\n" for k in range(classes)]
    (root / "imagenet" / "classnames.txt").write_text("".join(names))


def listing(root: Path) -> int:
    from npt.datasets.listing import remembered

    home = root / "imagenet"
    trees = (remembered(home / "images" / part, home) for part in ("train", "val"))
    return sum(len(files) for tree in trees for files in tree.values())


def run(root: Path, shots: int) -> int:
    """Build the data set as a run does, from the stored listing."""
    from dassl.config import get_cfg_default
    from npt.datasets.paper import DATASETS

    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = "ImageNet", str(root), shots
    random.seed(1)
    data = DATASETS["ImageNet"](cfg)
    return len(data.train_x) + len(data.test)


STEPS: dict[str, Callable[[Path], int]] = {
    "listed, the first time": listing,
    "listed again": listing,
    "a run with 16 shots": lambda root: run(root, 16),
    "a run with all images": lambda root: run(root, -1),
}


def step(name: str, root: Path) -> None:
    """Run one step, and print its time, memory and number of images."""
    import npt.datasets.paper  # noqa: F401  imports are not measured

    def peak() -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    count = STEPS[name](root)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"=> {seconds} {cpu} {peak() - before} {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder for the tree (a temporary folder)")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    parser.add_argument("--images", type=int, default=1281, help="training images of each class")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step(args.step, args.root)
        return
    with tempfile.TemporaryDirectory(prefix="listing-", dir=args.root) as folder:
        start = time.perf_counter()
        make(Path(folder), args.classes, args.images)
        print(f"created the tree in {time.perf_counter() - start:.0f} s")
        rows = []
        for name in STEPS:
            command = [sys.executable, __file__, "--root", folder, "--step", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds, cpu, memory, count = done.stdout.rpartition("=> ")[2].split()
            times = f"{float(seconds):.2f}", f"{float(cpu):.2f}"
            rows.append([name, f"{int(count):,}", *times, int(memory) >> 20])
        kept = next((Path(folder) / "imagenet").glob("npt-listing-*-train.json"))
        size = kept.stat().st_size / 2**20
        print(tabulate(rows, headers=["", "images", "seconds", "of CPU", "peak MiB"]))
        print(f"stored listing: {kept.name}, {size:.0f} MiB")


if __name__ == "__main__":
    main()
