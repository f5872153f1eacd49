"""Images in every form that people have them: paths, PIL images, arrays, tensors.

An image is
- a path (str or Path) of an image file, read as in a training;
- a PIL image, of any mode;
- a numpy array, (H, W), (H, W, 1), (H, W, 3) in the order R, G, B, or (H, W, 4) with alpha: of
  uint8, of uint16, of other integers from 0 to 255, or of floats from 0 to 1;
- a torch tensor, (H, W), (1, H, W), (3, H, W) or (4, H, W), of the same values.
Several images are a list, tuple or iterator of images, or an array (N, H, W, C) or tensor
(N, C, H, W).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from npt.errors import InvalidArgument
from npt.pictures import read_picture


def is_one(images: Any) -> bool:
    """Whether it is one image rather than several."""
    if isinstance(images, (np.ndarray, Tensor)):
        return images.ndim <= 3
    return isinstance(images, (str, os.PathLike, Image.Image))


def listed(images: Any) -> Iterable[Any]:
    """The images one by one. InvalidArgument if it is neither an image nor several."""
    if is_one(images):
        return [images]
    if not isinstance(images, Iterable):
        raise InvalidArgument(
            f"a value of type {type(images).__name__} is no image: give a path, a PIL image, an "
            "array, a tensor, or a list of these"
        )
    return images


def tensors(
    images: Iterable[Any], transform: Callable[[Any], Tensor], upright: bool = False
) -> Iterator[Tensor]:
    """The preprocessed images, (3, H, W) each. NPTError, naming it, for one that is no image.

    upright: turn files and PIL images as their cameras noted in EXIF
    """
    for number, image in enumerate(images):
        try:
            yield transform(as_picture(image, upright))
        except InvalidArgument as error:
            raise InvalidArgument(f"image {number}: {error}") from error


def as_picture(image: Any, upright: bool = False) -> Image.Image:
    """An image as a PIL image in RGB. NPTError if it cannot be read or is no image."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return read_picture(image, upright)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        return _of_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, "(C, H, W)")
    if isinstance(image, np.ndarray):
        return _of_array(image, "(H, W, C)")
    raise InvalidArgument(
        f"a value of type {type(image).__name__} is no image: give a path, a PIL image, an array "
        "or a tensor"
    )


def _of_array(array: np.ndarray, form: str) -> Image.Image:
    """A PIL image in RGB of an array (H, W) or (H, W, C); `form` is named in errors."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise InvalidArgument(
            f"its shape is not that of an image {form} with 1, 3 or 4 channels: {array.shape}"
        )
    if 0 in array.shape:
        raise InvalidArgument(f"it has no pixels: its shape is {array.shape}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    return Image.fromarray(_bytes(array)).convert("RGB")


def _bytes(array: np.ndarray) -> np.ndarray:
    """The values of an image as uint8."""
    kind, top = array.dtype, 1.0
    if kind == np.uint8:
        return array
    if kind.kind not in "biuf":
        raise InvalidArgument(f"its values are of type {kind}: give numbers")
    if kind.kind in "iu":
        top = 65535.0 if kind == np.uint16 else 255.0
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= top):  # also for NaN
        raise InvalidArgument(
            f"its values of type {kind} reach from {low:g} to {high:g}, and must be from 0 to "
            f"{top:g} (an image that is normalised already cannot be used)"
        )
    return np.rint(array.astype(np.float64) * (255 / top)).astype(np.uint8)
