"""Trainers for tests: a config in few words, and data that is in memory already."""

from types import SimpleNamespace

import torch

import npt  # noqa: F401  makes dassl importable
from dassl.config import get_cfg_default
from npt.trainers import CoCoOp, CoOp, MaPLe, ZeroshotCLIP

TRAINERS = {t.__name__: t for t in (CoCoOp, CoOp, MaPLe, ZeroshotCLIP)}
NODES = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE"}


def config(trainer: str, backbone: str, *pairs, output: str = ""):
    """The engine's defaults with float32 on the CPU for `trainer`, then KEY VALUE pairs."""
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = trainer
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.INPUT.SIZE = (32, 32)
    cfg.USE_CUDA = False
    cfg.OUTPUT_DIR = output
    if trainer in NODES:
        cfg.TRAINER[NODES[trainer]].PREC = "fp32"
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    return cfg


class Batches:
    """A loader over `images` (N, B, 3, H, W) whose epochs are `per_epoch` batches, in order."""

    def __init__(self, images, labels, per_epoch):
        self.images, self.labels, self.per_epoch = images, labels, per_epoch
        self.next = 0

    def __len__(self):
        return self.per_epoch

    def __iter__(self):
        for _ in range(self.per_epoch):
            i = self.next % len(self.images)
            self.next += 1
            yield {"img": self.images[i], "label": self.labels[i]}


def random_batches(classes: int, count: int = 2, size: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 32, 32, generator=generator)
    return Batches(images, torch.randint(classes, (count, size), generator=generator), count)


def build(cfg, classnames, batches=None):
    """A trainer on classes and batches that are given, instead of a dataset's."""
    batches = batches or random_batches(len(classnames))

    class InMemory(TRAINERS[cfg.TRAINER.NAME]):
        def build_data_loader(self):
            items = [SimpleNamespace(label=int(y)) for y in batches.labels.flatten()]
            self.dm = SimpleNamespace(
                dataset=SimpleNamespace(classnames=list(classnames), train_x=items)
            )
            self.train_loader_x, self.train_loader_u = batches, None
            self.val_loader, self.test_loader = None, batches
            self.num_classes, self.num_source_domains = len(classnames), 1
            self.lab2cname = dict(enumerate(classnames))

    return InMemory(cfg)
