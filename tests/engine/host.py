"""A host that does not use npt: a data set, a model and a trainer on `dassl` alone.

    python host.py ROOT OUTPUT [--kill-at STEP] [KEY VALUE ...]

trains for three epochs. `--kill-at` ends the process with SIGKILL before that step, so that no
cleanup runs.
"""

from __future__ import annotations

import json
import os
import os.path as osp
import random
import signal
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}
SPLITS = {"train": 10, "val": 4, "test": 6}  # images of each class


def write_images(root: str) -> None:
    """Noisy images of one colour, 12 x 12 pixels; every fifth file is greyscale."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name, colour in COLOURS.items():
            folder = osp.join(root, "colours", split, name)
            os.makedirs(folder, exist_ok=True)
            for i in range(count):
                pixels = np.asarray(colour) + rng.normal(0, 40, (12, 12, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                if i % 5 == 4:
                    image = image.convert("L")
                image.save(osp.join(folder, f"{i}.png"))


@DATASET_REGISTRY.register()
class Colours(DatasetBase):
    dataset_dir = "colours"

    def __init__(self, cfg):
        root = osp.join(osp.abspath(osp.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        train, val, test = (self.read(root, split) for split in SPLITS)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=val, test=test)

    @staticmethod
    def read(root: str, split: str) -> list[Datum]:
        items = []
        for label, name in enumerate(COLOURS):
            folder = osp.join(root, split, name)
            for file in sorted(os.listdir(folder)):
                items.append(Datum(impath=osp.join(folder, file), label=label, classname=name))
        return items


class Net(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Dropout(0.3)
        )
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))


@TRAINER_REGISTRY.register()
class Plain(TrainerX):
    kill_at = -1

    def check_cfg(self, cfg) -> None:
        if cfg.TRAINER.PLAIN.PREC != "fp32":
            raise ValueError("TRAINER.PLAIN.PREC must be fp32")

    def build_model(self) -> None:
        self.model = Net(len(self.dm.dataset.classnames)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)
        self.order = []

    def forward_backward(self, batch):
        if self.epoch * self.num_batches + self.batch_idx == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        image, label, _ = self.parse_batch_train(batch)
        noise = float(np.random.rand()) + random.random()  # uses all random generators
        output = self.model(image + 0.1 * noise)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        names = [osp.relpath(path, self.cfg.DATASET.ROOT) for path in batch["impath"]]
        self.order.append(
            [self.epoch, self.get_current_lr(), loss.item(), image.sum().item(), names]
        )
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


def config(root: str, output: str, *pairs: object):
    from yacs.config import CfgNode

    cfg = get_cfg_default()
    cfg.TRAINER.PLAIN = CfgNode({"PREC": "fp32"})
    cfg.merge_from_list(
        [
            *("DATASET.ROOT", root, "DATASET.NAME", "Colours", "DATASET.NUM_SHOTS", 8),
            *("OUTPUT_DIR", output, "TRAINER.NAME", "Plain", "SEED", 0),
            *("INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ["random_resized_crop", "normalize"]),
            *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 5),
            *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", 3),
            *("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1),
            *("OPTIM.WARMUP_TYPE", "constant", "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 2),
            *pairs,
        ]
    )
    cfg.freeze()
    return cfg


def main(root: str, output: str, *pairs: object, kill_at: int = -1) -> Plain:
    cfg = config(root, output, *pairs)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    trainer.kill_at = kill_at
    trainer.train()
    with open(osp.join(output, "order.json"), "w") as f:
        json.dump(trainer.order, f)
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    kill_at = -1
    if "--kill-at" in arguments:
        place = arguments.index("--kill-at")
        kill_at = int(arguments.pop(place + 1))
        arguments.pop(place)
    main(*arguments, kill_at=kill_at)
