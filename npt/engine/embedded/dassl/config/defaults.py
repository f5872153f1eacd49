"""All config keys of the engine. Hosts add their own nodes under TRAINER.

`KEYS` is the table: the default of each key and, as data, which values it takes. `_C` is the tree
of the defaults. The engine imports nothing of npt; `npt.config` checks the values when the config
of a run is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from yacs.config import CfgNode as CN


class Key(NamedTuple):
    """A key takes values of its default's type, within these bounds; see `npt.checks.like`."""

    default: Any
    low: float | None = None  # bounds of a number, or of the numbers in a list
    high: float | None = None
    ends: str = "[]"  # which bounds are allowed themselves
    names: Sequence[str] = ()  # the allowed texts
    length: int | None = None  # items of a list
    item: Any = None  # an item, where the default is an empty list
    or_one: bool = False  # whether one item may stand for a list of it
    rule: tuple[Callable[[Any], bool], str] | None = None  # what it must also be, and in words


FLOAT32 = 1e38  # a larger number is infinite in float32
PIXELS = 16384  # side of an image
EPOCHS = 10**6
IMAGES = 10**6  # in a batch

ODD = (lambda value: value % 2 == 1, "odd")
ASCENDING = (lambda value: value[0] <= value[1], "the first not above the second")
NOT_EMPTY = (lambda value: value not in ((), []), "not empty")

# Names without a list here belong to registries, which hosts extend: their builders check them.
KEYS: dict[str, Key] = {
    "VERSION": Key(1),
    "OUTPUT_DIR": Key("./output"),
    "RESUME": Key(""),  # folder to resume from; empty: OUTPUT_DIR
    "SEED": Key(-1, high=2**32 - 1),  # negative: no seed
    "USE_CUDA": Key(True),
    "VERBOSE": Key(True),
    # ---- images
    "INPUT.SIZE": Key((224, 224), 1, PIXELS, length=2),  # height, width
    "INPUT.INTERPOLATION": Key("bilinear", names=("bilinear", "bicubic", "nearest")),
    "INPUT.TRANSFORMS": Key((), item="normalize"),
    "INPUT.NO_TRANSFORM": Key(False),
    "INPUT.PIXEL_MEAN": Key([0.485, 0.456, 0.406], -1e6, 1e6, length=3),
    "INPUT.PIXEL_STD": Key([0.229, 0.224, 0.225], 1e-6, 1e6, length=3),
    "INPUT.CROP_PADDING": Key(4, 0, 1024),
    "INPUT.RRCROP_SCALE": Key((0.08, 1.0), 0, 1, "(]", length=2, rule=ASCENDING),  # parts of area
    "INPUT.CUTOUT_N": Key(1, 0, 1000),
    "INPUT.CUTOUT_LEN": Key(16, 0, PIXELS),
    "INPUT.GN_MEAN": Key(0.0, -1e6, 1e6),
    "INPUT.GN_STD": Key(0.15, 0, 1e6),
    "INPUT.RANDAUGMENT_N": Key(2, 0, 100),
    "INPUT.RANDAUGMENT_M": Key(10, 0, 30),
    "INPUT.COLORJITTER_B": Key(0.4, 0, 100),
    "INPUT.COLORJITTER_C": Key(0.4, 0, 100),
    "INPUT.COLORJITTER_S": Key(0.4, 0, 100),
    "INPUT.COLORJITTER_H": Key(0.1, 0, 0.5),
    "INPUT.RGS_P": Key(0.2, 0, 1),  # probability of random greyscale
    "INPUT.GB_P": Key(0.5, 0, 1),  # probability of Gaussian blur
    "INPUT.GB_K": Key(21, 1, PIXELS, rule=ODD),  # kernel size of Gaussian blur
    # ---- data
    "DATASET.ROOT": Key(""),
    "DATASET.NAME": Key(""),
    "DATASET.SOURCE_DOMAINS": Key((), item="domain"),
    "DATASET.TARGET_DOMAINS": Key((), item="domain"),
    "DATASET.NUM_LABELED": Key(-1),
    "DATASET.NUM_SHOTS": Key(-1),  # images of each class; below 1: all
    "DATASET.VAL_PERCENT": Key(0.1, 0, 1),
    "DATASET.STL10_FOLD": Key(-1, -1, 9),
    "DATASET.CIFAR_C_TYPE": Key(""),
    "DATASET.CIFAR_C_LEVEL": Key(1, 1, 5),
    "DATASET.ALL_AS_UNLABELED": Key(False),
    "DATALOADER.NUM_WORKERS": Key(4, 0, 512),
    "DATALOADER.K_TRANSFORMS": Key(1, 1, 1000),  # augmented versions of each training image
    "DATALOADER.RETURN_IMG0": Key(False),  # also return the image without augmentation
    "DATALOADER.TRAIN_X.SAMPLER": Key("RandomSampler"),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(32, 1, IMAGES),
    # leave out the last batch of an epoch if it does not fill up, as Dassl does
    "DATALOADER.TRAIN_X.DROP_LAST": Key(True),
    "DATALOADER.TRAIN_X.N_DOMAIN": Key(0),  # RandomDomainSampler: domains per batch; 0: all
    "DATALOADER.TRAIN_X.N_INS": Key(16, 1, IMAGES),  # RandomClassSampler: of a class in a batch
    "DATALOADER.TRAIN_U.SAME_AS_X": Key(True),
    "DATALOADER.TRAIN_U.SAMPLER": Key("RandomSampler"),
    "DATALOADER.TRAIN_U.BATCH_SIZE": Key(32, 1, IMAGES),
    "DATALOADER.TRAIN_U.DROP_LAST": Key(True),
    "DATALOADER.TRAIN_U.N_DOMAIN": Key(0),
    "DATALOADER.TRAIN_U.N_INS": Key(16, 1, IMAGES),
    "DATALOADER.TEST.SAMPLER": Key("SequentialSampler"),
    "DATALOADER.TEST.BATCH_SIZE": Key(32, 1, IMAGES),
    # ---- model
    "MODEL.INIT_WEIGHTS": Key(""),
    "MODEL.BACKBONE.NAME": Key(""),
    "MODEL.BACKBONE.PRETRAINED": Key(True),
    "MODEL.HEAD.NAME": Key(""),
    "MODEL.HEAD.HIDDEN_LAYERS": Key((), 1, 10**6, item=512, or_one=True),
    "MODEL.HEAD.ACTIVATION": Key("relu"),
    "MODEL.HEAD.BN": Key(True),
    "MODEL.HEAD.DROPOUT": Key(0.0, 0, 1),
    # ---- optimizer and schedule
    "OPTIM.NAME": Key("adam"),
    "OPTIM.LR": Key(3e-4, 0, FLOAT32),
    "OPTIM.WEIGHT_DECAY": Key(5e-4, 0, FLOAT32),
    "OPTIM.MOMENTUM": Key(0.9, 0, 1, "[)"),
    "OPTIM.SGD_DAMPNING": Key(0, 0, 1),
    "OPTIM.SGD_NESTEROV": Key(False),
    "OPTIM.RMSPROP_ALPHA": Key(0.99, 0, 1, "[)"),
    "OPTIM.ADAM_BETA1": Key(0.9, 0, 1, "[)"),
    "OPTIM.ADAM_BETA2": Key(0.999, 0, 1, "[)"),
    # train NEW_LAYERS at LR and all other layers at LR * BASE_LR_MULT
    "OPTIM.STAGED_LR": Key(False),
    "OPTIM.NEW_LAYERS": Key((), item="head", or_one=True),
    "OPTIM.BASE_LR_MULT": Key(0.1, 0, 1),
    "OPTIM.LR_SCHEDULER": Key("single_step"),
    # epochs; for single_step zero or negative: MAX_EPOCH
    "OPTIM.STEPSIZE": Key((-1,), None, EPOCHS, or_one=True, rule=NOT_EMPTY),
    "OPTIM.GAMMA": Key(0.1, 0, 1),
    "OPTIM.MAX_EPOCH": Key(10, 1, EPOCHS),
    "OPTIM.WARMUP_EPOCH": Key(-1, high=EPOCHS),  # zero or negative: no warm-up
    "OPTIM.WARMUP_TYPE": Key("linear", names=("linear", "constant")),
    "OPTIM.WARMUP_CONS_LR": Key(1e-5, 0, FLOAT32),
    "OPTIM.WARMUP_MIN_LR": Key(1e-5, 0, FLOAT32),
    "OPTIM.WARMUP_RECOUNT": Key(True),  # the schedule after the warm-up counts epochs from 0
    # ---- training and test
    "TRAIN.CHECKPOINT_FREQ": Key(0),  # epochs between checkpoints; 0: only after the last epoch
    "TRAIN.PRINT_FREQ": Key(10, 1),
    "TRAIN.COUNT_ITER": Key("train_x", names=("train_x", "train_u", "smaller_one")),
    "TEST.EVALUATOR": Key("Classification"),
    "TEST.PER_CLASS_RESULT": Key(False),
    "TEST.COMPUTE_CMAT": Key(False),
    "TEST.NO_TEST": Key(False),
    "TEST.SPLIT": Key("test", names=("test", "val")),
    "TEST.FINAL_MODEL": Key("last_step", names=("last_step", "best_val")),
    "TRAINER.NAME": Key(""),
}


def _tree() -> CN:
    """The defaults as a config."""
    root = CN()
    for path, key in KEYS.items():
        *above, name = path.split(".")
        node = root
        for part in above:
            node = node.setdefault(part, CN())
        node[name] = key.default
    return root


_C = _tree()
