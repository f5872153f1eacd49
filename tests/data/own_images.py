"""A folder of images as a user has it, and runs on it that tests share."""

from pathlib import Path

import numpy as np
from PIL import Image

from npt import cli

CLASSES = {  # name -> colour, images: unequal, as they come
    "blue sky": ((70, 120, 220), 12),
    "green leaf": ((40, 160, 60), 9),
    "grey stone": ((120, 120, 120), 6),
    "orange": ((230, 140, 30), 6),
    "red apple": ((200, 40, 40), 5),
    "violet": ((150, 60, 190), 4),
}
OWN = ["--dataset-config-file", "configs/datasets/custom_folder.yaml", "--root"]


def make_images(folder: Path) -> Path:
    """Class folders with noisy pictures of one colour each, in several sizes and formats."""
    random = np.random.default_rng(0)
    for name, (colour, count) in CLASSES.items():
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        for number in range(count):
            height, width = random.integers(30, 60, 2)
            noise = random.integers(-30, 30, (height, width, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            suffix = ("jpg", "png", "webp")[number % 3]
            Image.fromarray(pixels).save(place / f"{number:02d}.{suffix}")
    return folder


def train(out: Path, trainer: str, method: str, *words: object) -> Path:
    """A short run of train.py on the small CLIP, in `out`."""
    argv = ["--trainer", trainer, "--config-file", f"configs/trainers/{method}/tiny.yaml"]
    argv += ["--output-dir", out, "--seed", 1, *words, "OPTIM.MAX_EPOCH", 2]
    assert cli.main([str(word) for word in argv]) == 0
    return out
