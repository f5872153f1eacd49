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
    meaning: str = ""  # one plain sentence, for docs/config.md
    low: float | None = None  # bounds of a number, or of the numbers in a list
    high: float | None = None
    ends: str = "[]"  # which bounds are allowed themselves
    names: Sequence[str] = ()  # the allowed texts
    length: int | None = None  # items of a list
    item: Any = None  # an item, where the default is an empty list
    or_one: bool = False  # whether one item may stand for a list of it
    rule: tuple[Callable[[Any], bool], str] | None = None  # what it must also be, and in words
    host: bool = False  # for trainers and data sets of a host: nothing of npt reads it


FLOAT32 = 1e38  # a larger number is infinite in float32
PIXELS = 16384  # side of an image
EPOCHS = 10**6
IMAGES = 10**6  # in a batch

ODD = (lambda value: value % 2 == 1, "odd")
ASCENDING = (lambda value: value[0] <= value[1], "the first not above the second")
NOT_EMPTY = (lambda value: value not in ((), []), "not empty")

# Names without a list here belong to registries, which hosts extend: their builders check them.
KEYS: dict[str, Key] = {
    "VERSION": Key(1, "version of the config's form; nothing reads it", host=True),
    "OUTPUT_DIR": Key(
        "./output", "folder of the log, the checkpoints and result.json (`--output-dir`)"
    ),
    "RESUME": Key("", "folder of checkpoints to continue from (`--resume`); empty: OUTPUT_DIR"),
    "SEED": Key(
        -1, "seed of the data draw and of the training (`--seed`); negative: none", high=2**32 - 1
    ),
    "USE_CUDA": Key(True, "use the GPU if there is one"),
    "VERBOSE": Key(True, "print what is built, and the number of classes and images"),
    # ---- images
    "INPUT.SIZE": Key(
        (224, 224),
        "height and width in pixels of the images that the model gets",
        1,
        PIXELS,
        length=2,
    ),
    "INPUT.INTERPOLATION": Key(
        "bilinear",
        "how pixels are interpolated where images are resized",
        names=("bilinear", "bicubic", "nearest"),
    ),
    "INPUT.TRANSFORMS": Key(
        (),
        "changes of training images (`--transforms`): random_translation, random_crop, "
        "random_resized_crop, random_flip, randaugment, colorjitter, randomgrayscale, "
        "gaussian_blur, cutout, normalize, gaussian_noise, instance_norm; test images are resized, "
        "cropped in the middle, and changed by normalize and instance_norm only",
        item="normalize",
    ),
    "INPUT.NO_TRANSFORM": Key(
        False, "images as they are in their files, for a model that transforms them itself"
    ),
    "INPUT.PIXEL_MEAN": Key(
        [0.485, 0.456, 0.406],
        "normalize: the mean of each channel, which is subtracted from values in [0, 1]",
        -1e6,
        1e6,
        length=3,
    ),
    "INPUT.PIXEL_STD": Key(
        [0.229, 0.224, 0.225],
        "normalize: the standard deviation of each channel, by which values are divided",
        1e-6,
        1e6,
        length=3,
    ),
    "INPUT.CROP_PADDING": Key(4, "random_crop: pixels of black frame around an image", 0, 1024),
    "INPUT.RRCROP_SCALE": Key(
        (0.08, 1.0),
        "random_resized_crop: the least and the largest part of the area that is kept",
        0,
        1,
        "(]",
        length=2,
        rule=ASCENDING,
    ),
    "INPUT.CUTOUT_N": Key(1, "cutout: number of squares", 0, 1000),
    "INPUT.CUTOUT_LEN": Key(16, "cutout: side of a square in pixels", 0, PIXELS),
    "INPUT.GN_MEAN": Key(0.0, "gaussian_noise: mean", -1e6, 1e6),
    "INPUT.GN_STD": Key(0.15, "gaussian_noise: standard deviation", 0, 1e6),
    "INPUT.RANDAUGMENT_N": Key(2, "randaugment: number of changes in a row", 0, 100),
    "INPUT.RANDAUGMENT_M": Key(10, "randaugment: strength of each change", 0, 30),
    "INPUT.COLORJITTER_B": Key(
        0.4, "colorjitter: largest change of brightness, as a part of it", 0, 100
    ),
    "INPUT.COLORJITTER_C": Key(
        0.4, "colorjitter: largest change of contrast, as a part of it", 0, 100
    ),
    "INPUT.COLORJITTER_S": Key(
        0.4, "colorjitter: largest change of saturation, as a part of it", 0, 100
    ),
    "INPUT.COLORJITTER_H": Key(
        0.1, "colorjitter: largest change of hue, as a part of the colour circle", 0, 0.5
    ),
    "INPUT.RGS_P": Key(0.2, "randomgrayscale: probability", 0, 1),
    "INPUT.GB_P": Key(0.5, "gaussian_blur: probability", 0, 1),
    "INPUT.GB_K": Key(21, "gaussian_blur: side of its kernel in pixels", 1, PIXELS, rule=ODD),
    # ---- data
    "DATASET.ROOT": Key("", "folder of the data sets (`--root`)"),
    "DATASET.NAME": Key("", "name of the data set, as its file in configs/datasets says it"),
    "DATASET.SOURCE_DOMAINS": Key(
        (), "domains to train on (`--source-domains`)", item="domain", host=True
    ),
    "DATASET.TARGET_DOMAINS": Key(
        (), "domains to test on (`--target-domains`)", item="domain", host=True
    ),
    "DATASET.NUM_LABELED": Key(-1, "number of labelled images", host=True),
    "DATASET.NUM_SHOTS": Key(-1, "training images of each class; below 1: all"),
    "DATASET.VAL_PERCENT": Key(
        0.1, "part of the training images that is split off for validation", 0, 1, host=True
    ),
    "DATASET.STL10_FOLD": Key(-1, "fold of STL-10; negative: all", -1, 9, host=True),
    "DATASET.CIFAR_C_TYPE": Key("", "kind of corruption of CIFAR-C", host=True),
    "DATASET.CIFAR_C_LEVEL": Key(1, "strength of the corruption of CIFAR-C", 1, 5, host=True),
    "DATASET.ALL_AS_UNLABELED": Key(
        False, "use the labelled images as unlabelled ones, too", host=True
    ),
    "DATALOADER.NUM_WORKERS": Key(4, "processes that read images; 0: the main process", 0, 512),
    "DATALOADER.K_TRANSFORMS": Key(1, "versions of each training image", 1, 1000, host=True),
    "DATALOADER.RETURN_IMG0": Key(False, "also give the image without random changes", host=True),
    "DATALOADER.TRAIN_X.SAMPLER": Key(
        "RandomSampler",
        "the order of training images: RandomSampler, SequentialSampler, "
        "ClassBalancedSampler, RandomClassSampler, RandomDomainSampler, SeqDomainSampler",
    ),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(32, "images in a training step", 1, IMAGES),
    "DATALOADER.TRAIN_X.DROP_LAST": Key(
        True, "leave out the last batch of an epoch if it does not fill up"
    ),
    "DATALOADER.TRAIN_X.N_DOMAIN": Key(0, "RandomDomainSampler: domains in a batch; 0: all"),
    "DATALOADER.TRAIN_X.N_INS": Key(
        16, "RandomClassSampler: images of a class in a batch", 1, IMAGES
    ),
    "DATALOADER.TRAIN_U.SAME_AS_X": Key(
        True, "unlabelled images: take the keys of TRAIN_X instead of these", host=True
    ),
    "DATALOADER.TRAIN_U.SAMPLER": Key("RandomSampler", "unlabelled images: their order", host=True),
    "DATALOADER.TRAIN_U.BATCH_SIZE": Key(
        32, "unlabelled images in a training step", 1, IMAGES, host=True
    ),
    "DATALOADER.TRAIN_U.DROP_LAST": Key(
        True, "unlabelled images: leave out a last batch that does not fill up", host=True
    ),
    "DATALOADER.TRAIN_U.N_DOMAIN": Key(
        0, "unlabelled images: domains in a batch; 0: all", host=True
    ),
    "DATALOADER.TRAIN_U.N_INS": Key(
        16, "unlabelled images: images of a class in a batch", 1, IMAGES, host=True
    ),
    "DATALOADER.TEST.SAMPLER": Key("SequentialSampler", "the order of test images"),
    "DATALOADER.TEST.BATCH_SIZE": Key(32, "images at a time in a test", 1, IMAGES),
    # ---- model
    "MODEL.INIT_WEIGHTS": Key(
        "", "file of weights to start from; for prompt learners a checkpoint of the same method"
    ),
    "MODEL.BACKBONE.NAME": Key(
        "",
        "the CLIP (`--backbone`): a name such as ViT-B/16, open_clip:MODEL/TAG, hf:NAME, the path "
        "of a file or folder, or tiny (docs/backbones.md)",
    ),
    "MODEL.BACKBONE.PRETRAINED": Key(True, "load the backbone's trained weights", host=True),
    "MODEL.HEAD.NAME": Key("", "network between backbone and classifier (`--head`)", host=True),
    "MODEL.HEAD.HIDDEN_LAYERS": Key(
        (), "widths of the head's layers", 1, 10**6, item=512, or_one=True, host=True
    ),
    "MODEL.HEAD.ACTIVATION": Key("relu", "activation of the head: relu, leaky_relu", host=True),
    "MODEL.HEAD.BN": Key(True, "batch normalization in the head", host=True),
    "MODEL.HEAD.DROPOUT": Key(
        0.0, "dropout in the head: part of the values set to zero", 0, 1, host=True
    ),
    # ---- optimizer and schedule
    "OPTIM.NAME": Key("adam", "the optimizer: adam, amsgrad, sgd, rmsprop, radam, adamw"),
    "OPTIM.LR": Key(3e-4, "learning rate at the beginning (after a warm-up)", 0, FLOAT32),
    "OPTIM.WEIGHT_DECAY": Key(5e-4, "weight decay", 0, FLOAT32),
    "OPTIM.MOMENTUM": Key(0.9, "sgd and rmsprop: momentum", 0, 1, "[)"),
    "OPTIM.SGD_DAMPNING": Key(0, "sgd: dampening of the momentum", 0, 1),
    "OPTIM.SGD_NESTEROV": Key(False, "sgd: Nesterov momentum"),
    "OPTIM.RMSPROP_ALPHA": Key(0.99, "rmsprop: smoothing constant", 0, 1, "[)"),
    "OPTIM.ADAM_BETA1": Key(
        0.9, "adam, amsgrad, radam, adamw: decay of the mean of gradients", 0, 1, "[)"
    ),
    "OPTIM.ADAM_BETA2": Key(
        0.999, "adam, amsgrad, radam, adamw: decay of the mean of squared gradients", 0, 1, "[)"
    ),
    "OPTIM.STAGED_LR": Key(
        False, "train NEW_LAYERS at LR and all other layers at LR * BASE_LR_MULT"
    ),
    "OPTIM.NEW_LAYERS": Key(
        (), "STAGED_LR: names of the layers with the full rate", item="head", or_one=True
    ),
    "OPTIM.BASE_LR_MULT": Key(0.1, "STAGED_LR: factor of the rate of all other layers", 0, 1),
    "OPTIM.LR_SCHEDULER": Key("single_step", "how the rate falls: single_step, multi_step, cosine"),
    "OPTIM.STEPSIZE": Key(
        (-1,),
        "epochs between two steps of single_step (zero or negative: MAX_EPOCH); the epochs "
        "of the steps of multi_step",
        None,
        EPOCHS,
        or_one=True,
        rule=NOT_EMPTY,
    ),
    "OPTIM.GAMMA": Key(0.1, "single_step and multi_step: factor of the rate at a step", 0, 1),
    "OPTIM.MAX_EPOCH": Key(10, "epochs of the training", 1, EPOCHS),
    "OPTIM.WARMUP_EPOCH": Key(-1, "epochs of warm-up; zero or negative: none", high=EPOCHS),
    "OPTIM.WARMUP_TYPE": Key(
        "linear", "warm-up with a rising or a constant rate", names=("linear", "constant")
    ),
    "OPTIM.WARMUP_CONS_LR": Key(1e-5, "constant warm-up: its rate", 0, FLOAT32),
    "OPTIM.WARMUP_MIN_LR": Key(1e-5, "linear warm-up: the rate of the first epoch", 0, FLOAT32),
    "OPTIM.WARMUP_RECOUNT": Key(True, "the schedule after the warm-up counts epochs from 0"),
    # ---- training and test
    "TRAIN.CHECKPOINT_FREQ": Key(
        0, "epochs between checkpoints; 0 or less: only after the last epoch"
    ),
    "TRAIN.PRINT_FREQ": Key(10, "batches between two lines of progress in the log", 1),
    "TRAIN.COUNT_ITER": Key(
        "train_x",
        "which images make up an epoch, where there are unlabelled ones",
        names=("train_x", "train_u", "smaller_one"),
        host=True,
    ),
    "TEST.EVALUATOR": Key("Classification", "the evaluator, by name: Classification"),
    "TEST.PER_CLASS_RESULT": Key(False, "print the accuracy of each class"),
    "TEST.COMPUTE_CMAT": Key(False, "save the confusion matrix as cmat.pt"),
    "TEST.NO_TEST": Key(False, "no test at the end of the training"),
    "TEST.SPLIT": Key("test", "the images that are tested on", names=("test", "val")),
    "TEST.FINAL_MODEL": Key(
        "last_step",
        "the model that is tested: that of the last epoch, or the best on validation images",
        names=("last_step", "best_val"),
    ),
    "TRAINER.NAME": Key("", "name of the trainer (`--trainer`)"),
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
