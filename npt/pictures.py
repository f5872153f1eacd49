"""Reading pictures: a file, a PIL image or an array becomes the RGB image that CLIP sees.

`read_picture` is the one function that does it, for training, tests, prediction and checks. What is
kept of a file, beside its colours:

- Transparency is ignored: the colours that the file has below it are taken. Colour profiles, too.
- Of several images (animated GIF, WebP and APNG, pages of a TIFF, MPO) it is the first one.
- Grey values of more than 8 bits, and floats, are scaled linearly by the range that the file has:
  that of its bits, 0 to 1 for floats, or the one it states (the TIFF tags SMaxSampleValue and
  MaxSampleValue, sBIT of a PNG whose values fit into that many bits). Of 16-bit colours the upper
  8 bits are taken, as PIL does, unless the file states a range. Values that do not fit the range,
  NaN, and values that use less than a sixteenth of a range that is not stated are an error: they
  would become white or black.
- The rotation that a camera notes (EXIF) is applied if it is asked for (INPUT.EXIF_ROTATE). Pillow
  applies that of a TIFF always.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from npt.errors import NPTError

REMOVE = "replace it or remove it from the data"
SAVE_AS = "save it as JPEG or PNG"
SAVE_PLAIN = "save it as a PNG, or as a TIFF that is not planar"
RESCALE = "scale its values and save it with 8 bits"
STATE = f"{RESCALE}, or state their range in the file (TIFF tags SMinSampleValue, SMaxSampleValue)"
TO_8_BITS = "scale it to uint8, or to floats from 0 to 1"
MOST_ELONGATED = 1000  # sides: scaled until the shorter one is CLIP's 224, more would fill memory
DARK = 16  # 12 bits in 16 use a 16th of the range

ORIENTATION = 0x0112  # of EXIF
TURNS = {  # the value of ORIENTATION -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
LOWEST, HIGHEST = (340, 280), (341, 281)  # SMinSampleValue, MinSampleValue; SMax..., Max...
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2

Range = tuple[float, float]  # the values that are black and white
OF_16_BITS = (0.0, 65535.0)
SWAPPED = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "BL"}

# What a file is that Pillow does not identify: first byte of the mark, marks, in words, what to do.
KINDS: tuple[tuple[int, tuple[bytes, ...], str, str], ...] = (
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC image", SAVE_AS),
    (4, (b"ftypavif", b"ftypavis"), "an AVIF image, which this Pillow cannot decode", SAVE_AS),
    (4, (b"ftyp",), "a video", REMOVE),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image", SAVE_AS),
    (128, (b"DICM",), "a DICOM image", SAVE_AS),
    (0, (b"#?RADIANCE", b"#?RGBE", b"v/1\x01"), "a high dynamic range image", RESCALE),
    (0, (b"\x93NUMPY",), "a numpy array", SAVE_AS),
    (0, (b"%PDF", b"%!PS"), "a document", SAVE_AS),
    (0, (b"8BPS",), "a Photoshop document", SAVE_AS),
    (0, (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b"), "an archive", "unpack it"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS", "run `git lfs pull` in its folder"),
    (0, (b"\0\x05\x16\x07",), "a file of macOS about another file", REMOVE),
    (0, (b"<svg",), "a drawing (SVG)", SAVE_AS),
    (0, (b"<!doctype html", b"<html", b"<head"), "a web page", "download it again"),
    (0, (b"<?xml", b"{", b"["), "a text", REMOVE),
    (0, (b"\0" * 64,), "nothing but zeros: its copy was interrupted", REMOVE),
    (0, (b"\xff\xd8",), "a damaged JPEG", REMOVE),
    (0, (b"\x89PNG",), "a damaged PNG", REMOVE),
    (0, (b"GIF8",), "a damaged GIF", REMOVE),
    (0, (b"BM",), "a damaged BMP", REMOVE),
    (0, (b"RIFF",), "a damaged WebP, or no image", REMOVE),
    (
        0,
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "a damaged TIFF, or one of a kind that Pillow cannot decode, such as float colours",
        "save it as PNG",
    ),
)


class UnreadablePicture(NPTError, OSError):
    """A picture cannot be read, or not without turning it white or black."""

    __str__ = Exception.__str__


class MissingPicture(UnreadablePicture, FileNotFoundError):
    """There is no file."""


class _Refused(Exception):
    """Why a picture is not read, and what to do."""

    def __init__(self, reason: str, advice: str):
        super().__init__(reason)
        self.reason, self.advice = reason, advice


# --------------------------------------------------------------------------- reading
def read_picture(source: Any, upright: bool = False) -> Image.Image:
    """The picture in RGB, 8 bits per channel; see the module for what that means.

    source: a path, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of uint8,
        bool, uint16 (0 to 65535), or floats from 0 to 1
    upright: apply the rotation of EXIF (INPUT.EXIF_ROTATE of a config)
    MissingPicture if there is no such file, UnreadablePicture if it cannot be decoded or scaled;
    both are NPTErrors and OSErrors, of one sentence that names the file.
    """
    if isinstance(source, np.ndarray):
        with _naming("array of shape " + " x ".join(map(str, source.shape))):
            return _of_array(source)
    if isinstance(source, Image.Image):
        return to_rgb(source, upright)
    with open_picture(source) as image:
        return to_rgb(image, upright)


@contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open a file, whose size and format are then known; its pixels are decoded by `to_rgb`.

    MissingPicture if there is no such file, UnreadablePicture if Pillow does not know what it is.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise MissingPicture(f'There is no image at "{name}"')
    with _naming(f'image "{name}"'):
        try:
            image = Image.open(name)
        except UnidentifiedImageError as error:
            raise _unidentified(name) from error
    with image:
        yield image


def to_rgb(image: Image.Image, upright: bool = False) -> Image.Image:
    """`read_picture` of an image that is open."""
    name = getattr(image, "filename", "")
    with _naming(f'image "{os.fsdecode(name)}"' if name else f"image of the mode {image.mode}"):
        _check_shape(*image.size)
        raw = _raw_mode(image)  # known until the pixels are loaded
        stated = _stated_range(image)
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            rgb = _of_deep_grey(image, stated)
        elif ";16" in raw and raw.startswith(("RGB", "LA")):
            rgb = _of_deep_colours(image, raw, stated)
        elif raw and _bits(image) > 8 and ";16" not in raw:
            raise _Refused("Pillow reads its bytes in a wrong order", SAVE_PLAIN)
        elif not raw and _bits(image) > 8 and stated not in (None, OF_16_BITS):
            raise _Refused("it was loaded, which has cut its values to 8 bits", "give its path")
        else:
            rgb = image.convert("RGB")
        turn = TURNS.get(orientation(image)) if upright else None
        return rgb if turn is None else rgb.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The orientation that EXIF notes, 1 (upright) to 8; 1 if there is none or it is damaged.

    It may load the image, so `to_rgb` comes first.
    """
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many types on damaged EXIF
        return 1


def is_deep(image: Image.Image) -> bool:
    """Whether an open image has more than 8 bits a channel, so that it is scaled.

    Of colours it is known until they are loaded.
    """
    return image.mode == "F" or image.mode.startswith("I") or ";16" in _raw_mode(image)


@contextmanager
def _naming(picture: str) -> Iterator[None]:
    """Turn errors into an UnreadablePicture of one sentence."""
    try:
        yield
    except UnreadablePicture:
        raise
    except _Refused as error:
        reason, advice, cause = error.reason, error.advice, error.__cause__ or error
    except Image.DecompressionBombError as error:
        reason, advice, cause = str(error).partition(",")[0], "save a smaller copy of it", error
    except Exception as error:  # Pillow raises many types on damaged files
        reason, advice, cause = str(error) or type(error).__name__, REMOVE, error
    else:
        return
    reason = " ".join(reason.split()).rstrip(".")
    raise UnreadablePicture(f"The {picture} cannot be read ({reason}): {advice}") from cause


def _unidentified(path: str) -> _Refused:
    """What the file at `path` is, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return _Refused("it is empty", REMOVE)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, marks, words, advice in KINDS:
        if head[start:].startswith(marks) or (not start and text.startswith(marks)):
            return _Refused(f"it is {words}", advice)
    return _Refused("it is no image of a format that Pillow knows", SAVE_AS)


def _check_shape(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if long > MOST_ELONGATED * short:
        raise _Refused(f"it is {width} x {height} pixels, a line", "cut it, or remove it")


# --------------------------------------------------------------------------- depth
def _raw_mode(image: Image.Image) -> str:
    """The form of the pixels in the file, such as RGB;16B; "" after they are loaded."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _stated_range(image: Image.Image) -> Range | None:
    """The values that are black and white, if the file states them."""
    tags = getattr(image, "tag_v2", {})
    high = _number(tags, HIGHEST)
    if high is not None:
        return _number(tags, LOWEST) or 0.0, high
    bits = _significant_bits(image)
    return (0.0, 2.0**bits - 1) if 8 < bits < 16 else None


def _bits(image: Image.Image) -> int:
    """The bits of a channel of a TIFF; 8 for other formats."""
    return max(getattr(image, "tag_v2", {}).get(BITS, (8,)))


def _number(tags: Any, names: tuple[int, ...]) -> float | None:
    for name in names:
        value = tags.get(name)
        if value is not None:
            return float(max(value)) if isinstance(value, tuple) else float(value)
    return None


def _significant_bits(image: Image.Image) -> int:
    """The largest number in the chunk sBIT of a 16-bit PNG that is open; 0 if it has none."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None or not is_deep(image):
        return 0
    place = file.tell()
    try:
        file.seek(8)
        while True:
            head = file.read(8)
            if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
                return 0
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                return max(file.read(size), default=0)
            file.seek(size + 4, os.SEEK_CUR)
    finally:
        file.seek(place)


def _usual_range(image: Image.Image) -> Range:
    """The range of a file that states none: that of its bits, or 0 to 1."""
    if image.mode == "F":
        return 0.0, 1.0
    tags = getattr(image, "tag_v2", {})
    of_16 = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    bits = int(tags[BITS][0]) if BITS in tags else 16 if of_16 else 31
    signed = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == SIGNED
    return 0.0, 2.0 ** (bits - signed) - 1


def _of_deep_grey(image: Image.Image, stated: Range | None) -> Image.Image:
    """RGB of an image of the modes I, I;16... or F, which Pillow would cut at 255."""
    tags, usual = getattr(image, "tag_v2", {}), _usual_range(image)
    values = np.asarray(image)
    if image.mode == "I" and usual[1] == 2.0**32 - 1:
        values = values.view(np.uint32)  # Pillow has no mode for them
    grey = _to_8_bits(values, _range(image, values, stated), usual, STATE)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return Image.fromarray(255 - grey if inverted else grey).convert("RGB")


def _of_deep_colours(image: Image.Image, raw: str, stated: Range | None) -> Image.Image:
    """RGB of an image with 16 bits a channel, of which Pillow has kept the upper 8."""
    upper = image.convert("RGB")
    extrema: Any = upper.getextrema()
    brightest = max(high for _, high in extrema)
    if stated in (None, OF_16_BITS) and brightest >= 256 // DARK:
        return upper
    values = np.asarray(upper).astype(np.uint16) << 8 | _lower_bytes(image, raw)
    stated = _range(image, values, stated)
    if stated is None:
        _check_used(values, OF_16_BITS, STATE)
        return upper
    return Image.fromarray(_to_8_bits(values, stated, OF_16_BITS, STATE))


def _lower_bytes(image: Image.Image, raw: str) -> Any:
    """The lower 8 bits of 16-bit colours: Pillow takes them for the upper ones if told so."""
    order = raw[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    swapped = raw[:-1] + ("B" if order == "L" else "L")
    name = getattr(image, "filename", "")
    if not name or swapped not in SWAPPED:
        raise _Refused("its 16-bit colours are too dark for their upper 8 bits", RESCALE)
    with Image.open(name) as again:
        again.tile = [_with_raw_mode(tile, swapped) for tile in again.tile]
        return np.asarray(again.convert("RGB"))


def _with_raw_mode(tile: Any, raw: str) -> Any:
    *place, arguments = tile
    several = isinstance(arguments, tuple)
    return type(tile)(*place, (raw, *arguments[1:]) if several else raw)


def _range(image: Image.Image, values: Any, stated: Range | None) -> Range | None:
    """`stated`; None if the values of a PNG fill 16 bits anyway, as its specification asks."""
    if stated is not None and image.format == "PNG":
        step = int(65536 / (stated[1] + 1))
        if values.max() > stated[1] or not (values % step).any():
            return None
    return stated


def _of_array(values: np.ndarray) -> Image.Image:
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 3, 4) or not values.size:
        raise _Refused("it must be (H, W), (H, W, 3) or (H, W, 4)", "change its shape")
    if values.ndim == 3:
        values = values[:, :, 0] if channels == 1 else values[:, :, :3]
    _check_shape(values.shape[1], values.shape[0])
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = _to_8_bits(values, None, OF_16_BITS, TO_8_BITS)
    elif np.issubdtype(values.dtype, np.floating):
        values = _to_8_bits(values, None, (0.0, 1.0), TO_8_BITS)
    elif values.dtype != np.uint8:
        raise _Refused(f"{values.dtype} does not say which value is white", TO_8_BITS)
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def _to_8_bits(values: Any, stated: Range | None, usual: Range, advice: str) -> np.ndarray:
    """Values from low to high as 0 to 255. _Refused if they do not fit that range.

    stated: the range that the file states; otherwise it is `usual`
    """
    low, high = stated or usual
    if not low < high:
        raise _Refused(f"it states a range from {low:g} to {high:g}", advice)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():
        raise _Refused("it has values that are infinite or no numbers", advice)
    margin = (high - low) / 510  # half a level of 8 bits: what resizing makes of 1 is 1.0001
    if not low - margin <= least <= most <= high + margin:
        raise _Refused(
            f"its values go from {least:g} to {most:g}, where {low:g} is black and {high:g} white",
            advice,
        )
    if stated is None:
        _check_used(values, usual, advice)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _check_used(values: Any, usual: Range, advice: str) -> None:
    """_Refused if values, of at least 0, use so little of their range that they would be black."""
    most = float(values.max())
    if 0 < most < usual[1] / DARK:
        raise _Refused(
            f"its largest value is {most:g} of {usual[1]:g}, so that it would be almost black",
            advice,
        )
