"""A cache of decoded training images: few-shot training reads the same few files in every epoch."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from dassl.data.data_manager import DatasetWrapper
from npt.encoders.memory import free_bytes
from npt.pictures import UnreadablePicture, open_picture

UPRIGHT, ON_ITS_SIDE = 1, 2  # ... as stored; with width and height of the file exchanged
MAX_IMAGES = 20_000  # more are not few-shot data, and reading their sizes alone would take long


class KeptImages(DatasetWrapper):
    """The engine's data set, which in training decodes each file once, if it fits in memory.

    The pixels, and the random crops and flips of them, are the same as without the cache. It has an
    effect only if the engine reads images by `DatasetWrapper.read`, as the embedded one does.
    """

    def __init__(self, cfg: Any, data_source: Any, transform: Any = None, is_train: bool = False):
        super().__init__(cfg, data_source, transform, is_train)
        few = is_train and len(data_source) <= MAX_IMAGES
        paths = dict.fromkeys(item.impath for item in data_source)
        cached = few and hasattr(DatasetWrapper, "read")
        self._cache = Decoded(list(paths)) if cached else None

    def read(self, path: str) -> Image.Image:
        read = super().read
        return read(path) if self._cache is None else self._cache.read(path, read)


class Decoded:
    """Pixels of images, stored at the first read, in memory that forked loader workers share.

    It takes at most a quarter of the free memory; the images that do not fit are decoded each time.
    """

    def __init__(self, paths: list[str]):
        room = free_bytes(torch.device("cpu")) / 4
        self._places: dict[str, tuple[int, int, int, int]] = {}  # path -> number, start, w, h
        self._memory: mmap.mmap | None = None
        end = len(paths)  # the first bytes say whether an image is stored, and its orientation
        for number, path in enumerate(paths):
            try:
                with open_picture(path) as image:
                    width, height = image.size
            except UnreadablePicture:
                continue  # `read` will raise
            if end + 3 * width * height > room:
                break
            self._places[path] = (number, end, width, height)
            end += 3 * width * height
        if self._places:
            self._memory = mmap.mmap(-1, end)

    def read(self, path: str, decode: Callable[[str], Image.Image]) -> Image.Image:
        """What `decode` makes of the file at `path`, an image in RGB; raises what that raises."""
        if self._memory is None or path not in self._places:
            return decode(path)
        number, start, width, height = self._places[path]
        end = start + 3 * width * height
        if not self._memory[number]:
            image = decode(path)
            if sorted(image.size) != sorted((width, height)):
                return image  # the file has changed
            self._memory[start:end] = image.tobytes()
            # After the pixels: other workers read concurrently.
            self._memory[number] = UPRIGHT if image.size == (width, height) else ON_ITS_SIDE
        pixels: Any = memoryview(self._memory)[start:end]
        size = (width, height) if self._memory[number] == UPRIGHT else (height, width)
        return Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """An empty cache, for workers that are not forked: shared memory cannot be pickled."""
        return {"_places": {}, "_memory": None}
