"""Decodes every image of a data set, and says what is remarkable about them.

Images are compared by their pixels, so that a copy with another name, format or metadata is found,
as long as it is lossless.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from tqdm import tqdm

from npt.pictures import UnreadablePicture, is_deep, open_picture, orientation, to_rgb

THREADS = 2 * (os.cpu_count() or 1)  # Pillow releases the GIL while decoding
TINY = 32  # pixels of the shorter side; fewer than a patch of ViT-B/32
SHOWN = 3  # examples of a remark


class Place(NamedTuple):
    """Where a data set lists an image. part: "train", "val" or "test"."""

    part: str
    classname: str


class Facts(NamedTuple):
    """What is known of an image after decoding it.

    error: why it cannot be read, in one sentence; "" if it can, and then
    size: width and height in pixels
    deep: whether it was scaled from more than 8 bits
    turned: whether its EXIF data note a rotation
    pixels: a checksum of its colours
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    deep: bool = False
    turned: bool = False
    pixels: bytes = b""


def examine(path: str, upright: bool) -> Facts:
    """Decode an image. upright: turn it by its EXIF data."""
    try:
        with open_picture(path) as image:
            deep = is_deep(image)
            rgb = to_rgb(image, upright)
            turned = orientation(image) != 1  # last: it may load the image
    except UnreadablePicture as error:
        return Facts(str(error))
    digest = hashlib.blake2b(repr(rgb.size).encode(), digest_size=16)
    digest.update(rgb.tobytes())
    return Facts("", rgb.size, deep, turned, digest.digest())


def examine_all(paths: Iterable[str], name: str, upright: bool) -> dict[str, Facts]:
    """Path -> facts, decoded in threads, with a progress bar named `name`."""
    paths = list(paths)
    with ThreadPool(THREADS) as pool:
        results = pool.imap(lambda path: examine(path, upright), paths, chunksize=8)
        bar = tqdm(results, desc=name, total=len(paths), unit=" images", disable=None)
        return dict(zip(paths, bar, strict=True))


def remarks(places: Mapping[str, Place], facts: Mapping[str, Facts], upright: bool) -> list[str]:
    """Sentences about images that can be read, but perhaps not as their owner thinks."""
    found = {path: x for path, x in facts.items() if not x.error}
    turned = "are applied" if upright else "are not applied (INPUT.EXIF_ROTATE)"
    kinds = {
        "with more than 8 bits a channel, which are scaled": lambda x: x.deep,
        f"with a rotation in EXIF; rotations {turned}": lambda x: x.turned,
        f"of fewer than {TINY} pixels in width or height": lambda x: min(x.size) < TINY,
    }
    lines = []
    for words, is_of in kinds.items():
        paths = [path for path, known in found.items() if is_of(known)]
        if paths:
            lines.append(f"{_number(paths, 'image')} {words}: {_some(paths)}")
    return lines + _copies(places, found)


def _copies(places: Mapping[str, Place], facts: Mapping[str, Facts]) -> list[str]:
    """Sentences about pictures that are in several parts, or in several classes of a part."""
    same: dict[bytes, list[str]] = {}
    for path, known in facts.items():
        same.setdefault(known.pixels, []).append(path)
    of_parts: dict[str, list[str]] = {}
    of_classes: list[str] = []
    for paths in same.values():
        by_part = {places[path].part: path for path in paths}
        if len(by_part) > 1:
            pair = " = ".join(by_part.values())
            of_parts.setdefault(" and ".join(by_part), []).append(pair)
        by_class = {places[path].classname: path for path in paths}
        if len(by_class) > 1:
            of_classes.append(" = ".join(by_class.values()))
    lines = [
        f"{_number(pairs, 'picture')} in both {parts}, so that a test is of images that were seen "
        f"before: {_some(pairs)}"
        for parts, pairs in of_parts.items()
    ]
    if of_classes:
        lines.append(f"{_number(of_classes, 'picture')} in several classes: {_some(of_classes)}")
    return lines


def _number(names: list[str], what: str) -> str:
    return f"{len(names):,} {what}{'s' * (len(names) != 1)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
