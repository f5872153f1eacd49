"""The data set of the host: dots in eight colours, drawn at the first use."""

import os
import random

from PIL import Image, ImageDraw

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
SPLITS = {"train": 16, "val": 1, "test": 5}  # images per class


@DATASET_REGISTRY.register()
class Dots(DatasetBase):
    def __init__(self, cfg):
        root = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), "dots")
        names = {"all": COLOURS, "base": COLOURS[:4], "new": COLOURS[4:]}
        names = names[cfg.DATASET.SUBSAMPLE_CLASSES]
        if cfg.TRAINER.NAME == "Named":
            names = names[1:]
        train, val, test = (self.read(root, split, names) for split in SPLITS)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=val, test=test)

    @staticmethod
    def read(root, split, names):
        items = []
        for label, name in enumerate(names):
            for i in range(SPLITS[split]):
                path = os.path.join(root, split, f"{name}_{i}.png")
                if not os.path.isfile(path):
                    draw(path, name)
                items.append(Datum(impath=path, label=label, classname=name))
        return items


def draw(path, name):
    rng = random.Random(path.rpartition("dots")[2])
    image = Image.new("RGB", (32, 32), tuple(rng.randrange(90, 160) for _ in range(3)))
    for colour, r in ((rng.choice(COLOURS), 5), (name, 5)):  # the first is a distraction
        x, y = rng.randrange(8, 24), rng.randrange(8, 24)
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image.save(path)
