"""Images in every form that people have them: paths, PIL images, arrays, tensors.

An image is
- a path (str or Path) of an image file, read as in a training;
- a PIL image, of any mode;
- a numpy array, (H, W), (H, W, 1), (H, W, 3) in the order R, G, B, or (H, W, 4) with alpha: of
  uint8, bool, uint16 (0 to 65535), or floats from 0 to 1;
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

from npt.errors import InvalidArgument, NPTError
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
    """The preprocessed images, (3, H, W) each; upright: see `npt.pictures.read_picture`.

    NPTError, naming it, for one that cannot be read or is no image.
    """
    for number, image in enumerate(images):
        if isinstance(image, Tensor):
            image = _array(image, number)
        if not isinstance(image, (str, os.PathLike, Image.Image, np.ndarray)):
            raise InvalidArgument(
                f"image {number} is of type {type(image).__name__}, which is no image: give a "
                "path, a PIL image, an array or a tensor"
            )
        try:
            picture = read_picture(image, upright)
        except NPTError as error:
            if isinstance(image, (str, os.PathLike)):
                raise
            raise InvalidArgument(f"image {number}: {error}") from error
        yield transform(picture)


def _array(image: Tensor, number: int) -> np.ndarray:
    """A tensor (C, H, W) or (H, W) as an array (H, W, C) or (H, W)."""
    if image.dim() == 3 and image.shape[0] not in (1, 3, 4):
        raise InvalidArgument(
            f"image {number} is a tensor of shape {tuple(image.shape)}: it must be (C, H, W) with "
            "1, 3 or 4 channels (an array is (H, W, C))"
        )
    image = image.detach().to_dense().cpu()
    array = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array
