"""Trainers for tests, with a short config and with data in memory."""

from types import SimpleNamespace

import torch

import npt  # noqa: F401  makes dassl importable
from dassl.config import get_cfg_default
from npt.trainers import CoCoOp, CoOp, MaPLe, ZeroshotCLIP

TRAINERS = {t.__name__: t for t in (CoCoOp, CoOp, MaPLe, ZeroshotCLIP)}
NODES = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE"}


def config(trainer: str, backbone: str, *pairs, output: str = ""):
    """The engine's defaults, for `trainer` in float32 on the CPU, changed by KEY VALUE pairs."""
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
    """A loader of N batches `images` (N, B, 3, H, W), in order; an epoch is `per_epoch` of them."""

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


def build(cfg, classnames, batches=None, template=None, kind=None):
    """A trainer on these classes and batches; the data set has a `template` if one is given.

    kind: a mixin in front of the trainer
    """
    batches = batches or random_batches(len(classnames))
    own = TRAINERS[cfg.TRAINER.NAME]

    class InMemory(*(x for x in (kind, own) if x)):
        def build_data_loader(self):
            items = [SimpleNamespace(label=int(y)) for y in batches.labels.flatten()]
            dataset = SimpleNamespace(classnames=list(classnames), train_x=items)
            if template is not None:
                dataset.template = template
            self.dm = SimpleNamespace(dataset=dataset)
            self.train_loader_x, self.train_loader_u = batches, None
            self.val_loader, self.test_loader = None, batches
            self.num_classes, self.num_source_domains = len(classnames), 1
            self.lab2cname = dict(enumerate(classnames))

    return InMemory(cfg)
