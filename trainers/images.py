"""Few-shot images stay decoded in memory: every epoch draws its crops from the same few files."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from PIL import Image

from dassl.data.data_manager import DatasetWrapper
from dassl.utils import read_image
from npt.encoders.memory import free_bytes

MOST = 20_000  # images; longer lists are no few-shot data, and only their sizes take long to read


class KeptImages(DatasetWrapper):
    """The engine's items; in training files are decoded once, as many as fit in memory.

    Crops and flips are drawn as without it, from the same pixels. It takes an engine that reads
    images through `read`, as the embedded one; on another it changes nothing.
    """

    def __init__(self, cfg: Any, data_source: Any, transform: Any = None, is_train: bool = False):
        super().__init__(cfg, data_source, transform, is_train)
        fits = is_train and len(data_source) <= MOST and hasattr(DatasetWrapper, "read")
        paths = dict.fromkeys(item.impath for item in data_source)
        self._kept = Decoded(list(paths)) if fits else None

    def read(self, path: str) -> Image.Image:
        return read_image(path) if self._kept is None else self._kept.read(path)


class Decoded:
    """Pixels of images, in memory that a loader's forked workers share; filled as they are read.

    Takes at most a quarter of the memory that is free: images beyond it are decoded every time.
    """

    def __init__(self, paths: list[str]):
        room = free_bytes(torch.device("cpu")) / 4
        self._places: dict[str, tuple[int, int, int, int]] = {}  # path -> number, start, w, h
        self._memory: mmap.mmap | None = None
        end = len(paths)  # the first bytes say which images are there
        for number, path in enumerate(paths):
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # whoever reads it will be told
            if end + 3 * width * height > room:
                break
            self._places[path] = (number, end, width, height)
            end += 3 * width * height
        if self._places:
            self._memory = mmap.mmap(-1, end)

    def read(self, path: str) -> Image.Image:
        """The image as RGB; errors as `read_image`."""
        if self._memory is None or path not in self._places:
            return read_image(path)
        number, start, width, height = self._places[path]
        end = start + 3 * width * height
        if not self._memory[number]:
            image = read_image(path)
            if image.size != (width, height):
                return image  # the file has changed
            self._memory[start:end] = image.tobytes()
            self._memory[number] = 1  # last, for other workers read meanwhile
        pixels = memoryview(self._memory)[start:end]
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: they decode for themselves."""
        return {"_places": {}, "_memory": None}
