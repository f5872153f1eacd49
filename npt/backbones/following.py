"""The preprocessing in a config follows the CLIP that the config names, unless it is set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from typing import Any

from npt.backbones.catalog import Preprocessing
from npt.backbones.sources import find, preprocessing_of
from npt.errors import NPTError
from npt.names import SUFFIX, trainer_name

CLIP_TRAINERS = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe")  # with or without NPT
TOLERANCE = 1e-4  # of means and standard deviations, which people shorten


def follow(cfg: Any, in_files: Collection[str], given: Collection[str], file_name: str) -> None:
    """Set SIZE, PIXEL_MEAN, PIXEL_STD and INTERPOLATION of INPUT as the config's CLIP has them.

    in_files: full keys that config files have set; given: those of flags and KEY VALUE pairs
    file_name: the CLIP that the files name

    A key that is given stays. One in a file stays, too, unless a CLIP is given in place of the one
    in the file: then the file's values are those of another model. A warning says which change.
    """
    name = cfg.MODEL.BACKBONE.NAME
    try:
        wanted = preprocessing_of(name)
    except NPTError:
        if name and trainer_name(cfg).removesuffix(SUFFIX) in CLIP_TRAINERS:
            raise
        return  # another trainer, whose backbone need be no CLIP
    other = bool(file_name) and os.path.normpath(name) != os.path.normpath(file_name)
    changed = []
    for key, value in wanted.keys().items():
        full = f"INPUT.{key}"
        if full in given or (full in in_files and not other) or same(cfg.INPUT[key], value):
            continue
        if full in in_files:
            changed.append(f"{full} {value}")
        cfg.INPUT[key] = value
    if changed:
        warnings.warn(
            f"The config file's preprocessing is that of {file_name}, so {name} "
            f"gets its own: {', '.join(changed)}; give these keys on the command line for others.",
            stacklevel=3,
        )


def same(one: Any, other: Any) -> bool:
    """Whether two values of INPUT mean the same."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def check_input(cfg: Any, resolution: int) -> None:
    """Compare the preprocessing in a config with that of its CLIP, which is loaded.

    resolution: height and width of its images in pixels
    NPTError for another size; a warning for anything else.
    """
    name, size = cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)
    if size != (resolution, resolution):
        raise NPTError(
            f"INPUT.SIZE is {size}, but {name} takes images of ({resolution}, {resolution}); set "
            "INPUT.SIZE to that"
        )
    form = find(name).form
    wanted = (form and form.preprocessing) or Preprocessing(resolution)
    keys = {k: v for k, v in wanted.keys().items() if not same(cfg.INPUT[k], v)}
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        keys = {k: v for k, v in keys.items() if not k.startswith("PIXEL_")}
    if keys:
        told = ", ".join(f"INPUT.{k} is {cfg.INPUT[k]}, not {v}" for k, v in keys.items())
        warnings.warn(f"{name} was trained with another preprocessing: {told}.", stacklevel=2)
    if wanted.unlike:
        warnings.warn(
            f"{name} was trained on images that were {wanted.unlike}; here their shorter side is "
            "resized to the size of the model, and what is beyond a square is cut off.",
            stacklevel=2,
        )
