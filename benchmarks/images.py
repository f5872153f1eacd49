"""Times epochs over a few-shot data set, with and without keeping the decoded images in memory.

    python benchmarks/images.py --images 320

The images are JPEG files of 500 x 375 pixels with CLIP's training crops of 224 pixels. Both loaders
run alternately in one process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import _checkout  # noqa: F401  first: npt of this checkout
import numpy as np
import torch
from PIL import Image

import npt  # noqa: F401  makes `dassl` importable
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from npt.trainers.images import KeptImages


def photographs(folder: Path, count: int) -> list[Datum]:
    """Write random images with details of two scales, so that their size is like that of photos."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        noise = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((24, 32), (188, 250))]
        coarse, fine = (Image.fromarray(x).resize((500, 375), Image.BICUBIC) for x in noise)
        path = folder / f"{i}.jpg"
        Image.blend(coarse, fine, 0.25).save(path, quality=92)  # 90 kB
        items.append(Datum(str(path), label=i % 10))
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=320, help="number of images")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each loader, at least 2")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = get_cfg_default()
    cfg.USE_CUDA = False
    cfg.INPUT.SIZE = (224, 224)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = args.workers
    with tempfile.TemporaryDirectory() as folder:
        items = photographs(Path(folder), args.images)
        loaders = {
            name: build_data_loader(
                cfg,
                "RandomSampler",
                items,
                4,
                tfm=build_transform(cfg, is_train=True),
                dataset_wrapper=wrapper,
            )
            for name, wrapper in (("files", DatasetWrapper), ("kept", KeptImages))
        }
        times: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.epochs):
            for name, loader in loaders.items():
                start = time.perf_counter()
                for _ in loader:
                    pass
                times[name].append((time.perf_counter() - start) / args.images * 1000)
    first, later = times["kept"][0], statistics.median(times["kept"][1:])
    files = statistics.median(times["files"])
    print(f"ms an image: from files {files:.2f}; kept {first:.2f} in the first epoch, {later:.2f}")
    print(f"later epochs: {files / later:.2f}x as fast")


if __name__ == "__main__":
    main()
