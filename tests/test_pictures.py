"""Pictures as people have them: bit depths, colours, rotations, damaged and foreign files."""

import subprocess
import sys

import numpy as np
import pytest
from image_files import write_png, write_tiff
from PIL import Image, ImageOps

from npt.errors import NPTError
from npt.pictures import MissingPicture, UnreadablePicture, read_picture

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))  # black to white
GREY_8 = np.rint(RAMP * 255).astype(int)
GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6  # colour types of PNG
SMAX, MAX, SMIN = 341, 281, 340  # tags of TIFF


def of_bits(bits):
    return np.rint(RAMP * (2**bits - 1)).astype(np.uint16)


def colours(grey):
    return np.stack([grey] * 3, -1)


def assert_is_the_ramp(source):
    image = read_picture(source)
    assert (image.mode, image.size) == ("RGB", (64, 8))
    assert np.abs(np.asarray(image).astype(int) - GREY_8[:, :, None]).max() <= 1


# --------------------------------------------------------------------------- depth
@pytest.mark.parametrize(
    "values, colour, significant",
    [
        (of_bits(16), GREY, None),
        (of_bits(12), GREY, [12]),
        (of_bits(10), GREY, [10]),
        (of_bits(12) << 4, GREY, [12]),  # filled up to 16 bits, as PNG asks
        (of_bits(12) << 4 | of_bits(12) >> 8, GREY, [12]),
        (colours(of_bits(16)), RGB, None),
        (colours(of_bits(12)), RGB, [12, 12, 12]),
        (np.dstack([of_bits(16), of_bits(16)]), GREY_ALPHA, None),
        (np.dstack([colours(of_bits(16)), of_bits(16)]), RGBA, None),
    ],
)
def test_a_png_is_scaled_by_its_bits(tmp_path, values, colour, significant):
    assert_is_the_ramp(write_png(tmp_path / "a.png", values, colour, significant))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "values, form",
    [
        (of_bits(16), {}),
        (of_bits(12), {"_341": (3, (4095,))}),
        (of_bits(12), {"_281": (3, (4095,))}),
        (colours(of_bits(16)), {"photometric": 2}),
        (colours(of_bits(12)), {"photometric": 2, "_281": (3, (4095,) * 3)}),
        ((RAMP * 32767).astype(np.int16), {"sample_format": 2}),
        (
            (RAMP * 3000 - 1000).astype(np.int16),
            {"sample_format": 2, "_340": (8, (-1000,)), "_341": (8, (2000,))},
        ),
        ((RAMP * (2**31 - 1)).astype(np.int32), {"bits": 32, "sample_format": 2}),
        (RAMP.astype(np.float32), {"bits": 32, "sample_format": 3}),
        ((RAMP * 7.5).astype(np.float32), {"bits": 32, "sample_format": 3, "_341": (11, (7.5,))}),
    ],
)
def test_a_tiff_is_scaled_by_its_bits_or_the_range_it_states(tmp_path, values, form, order):
    assert_is_the_ramp(write_tiff(tmp_path / "a.tif", values, order=order, **form))


def test_a_tiff_whose_zero_is_white(tmp_path):
    assert_is_the_ramp(write_tiff(tmp_path / "a.tif", 65535 - of_bits(16), photometric=0))


def test_unsigned_32_bits(tmp_path):
    values = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)
    assert_is_the_ramp(write_tiff(tmp_path / "a.tif", values, bits=32))


@pytest.mark.parametrize("bits", [16, 12])
def test_a_netpbm_file_is_scaled_by_its_largest_value(tmp_path, bits):
    header = f"P5\n64 8\n{2**bits - 1}\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + of_bits(bits).astype(">u2").tobytes())
    assert_is_the_ramp(tmp_path / "a.pgm")


BAD = {
    "12 bits in 16": (of_bits(12), {}, "largest value is 4095 of 65535.*8 bits"),
    "12-bit colours": (colours(of_bits(12)), {"photometric": 2}, "largest value is 4095"),
    "10-bit colours": (colours(of_bits(8)), {"photometric": 2}, "largest value is 255"),
    "16 bits in 32": (of_bits(16).astype(np.uint32), {"bits": 32}, "largest value is 65535"),
    "negative": (of_bits(15).astype(np.int16) - 900, {"sample_format": 2}, "go from -900 to"),
    "beyond": (of_bits(12), {"_341": (3, (1000,))}, "to 4095, where 0 is black and 1000 white"),
    "no range": (of_bits(16), {"_341": (3, (0,))}, "states a range from 0 to 0"),
    "HDR": (RAMP.astype(np.float32) * 7.5, {"bits": 32, "sample_format": 3}, "from 0 to 7.5"),
    "NaN": (np.full((8, 64), np.nan, np.float32), {"bits": 32, "sample_format": 3}, "no numbers"),
    "float colours": (
        colours(RAMP.astype(np.float32)),
        {"bits": 32, "sample_format": 3, "photometric": 2},
        "a kind that Pillow cannot decode",
    ),
    "planar": (
        np.zeros((8, 64, 3), np.uint16) + 40000,
        {
            "photometric": 2,
            "_273": (4, (8, 1032, 2056)),
            "_279": (4, (1024,) * 3),
            "_284": (3, (2,)),
        },
        "not planar",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_become_white_or_black_is_refused(tmp_path, case):
    values, form, reason = BAD[case]
    file = write_tiff(tmp_path / "sample.tif", values, **form)
    with pytest.raises(UnreadablePicture, match=rf"sample\.tif.*{reason}"):
        read_picture(file)


def test_a_black_image_is_black(tmp_path):
    for name, values, colour in (
        ("a", of_bits(16) * 0, GREY),
        ("b", colours(of_bits(16) * 0), RGB),
    ):
        image = read_picture(write_png(tmp_path / f"{name}.png", values, colour))
        assert image.getextrema() == ((0, 0),) * 3


# --------------------------------------------------------------------------- colours
def painted(mode):
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize(
    "mode, suffix",
    [
        *(("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "jpg")),
        *(("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("RGB", "bmp"), ("P", "gif")),
    ],
)
def test_images_of_8_bits_have_the_pixels_that_pillow_gives(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    painted(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(read_picture(path)), expected)
        np.testing.assert_array_equal(np.asarray(read_picture(image)), expected)


def test_transparent_pixels_keep_the_colour_below(tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    image.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((0, 0)) == (10, 200, 30)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_images_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, green, blue = read_picture(tmp_path / f"a.{suffix}").getpixel((4, 4))
    assert red > 240 and green < 10 and blue < 10


# --------------------------------------------------------------------------- rotation
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_rotation_of_exif_is_applied_if_asked_for(tmp_path, suffix, turn):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = turn
    painted("RGB").save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        plain = np.asarray(image)
    np.testing.assert_array_equal(np.asarray(read_picture(path, upright=True)), expected)
    np.testing.assert_array_equal(np.asarray(read_picture(path)), plain)


@pytest.mark.parametrize("content", [b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0", b"garbage", b"MM"])
def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path, content):
    painted("RGB").save(tmp_path / "a.jpg", exif=content)
    assert read_picture(tmp_path / "a.jpg", upright=True).size == (16, 12)


# --------------------------------------------------------------------------- arrays and images
@pytest.mark.parametrize(
    "array",
    [
        GREY_8.astype(np.uint8),
        GREY_8.astype(np.uint8)[:, :, None],
        colours(GREY_8.astype(np.uint8)),
        np.dstack([colours(GREY_8.astype(np.uint8)), GREY_8.astype(np.uint8)]),
        of_bits(16),
        colours(of_bits(16)),
        RAMP,
        colours(RAMP.astype(np.float32)),
        np.asfortranarray(colours(RAMP.astype(np.float32))),
        RAMP * 1.0002 - 0.0001,
    ],
)
def test_arrays(array):
    assert_is_the_ramp(array)


def test_an_array_of_bool_is_black_and_white():
    assert read_picture(np.eye(4, dtype=bool)).getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize(
    "array, reason",
    [
        (GREY_8, "int64 does not say"),
        (RAMP * 255, "from 0 to 255, where 0 is black and 1 white"),
        (RAMP - 0.5, "from -0.5 to 0.5"),
        (RAMP * np.nan, "no numbers"),
        (of_bits(8), "almost black"),
        (np.zeros((3, 8, 8), np.uint8), "3 x 8 x 8.*must be"),
        (np.zeros((0, 8), np.uint8), "must be"),
        (np.zeros(8, np.uint8), "must be"),
        (np.array(["a"]), "must be"),
    ],
)
def test_an_array_that_does_not_say_what_is_white_is_refused(array, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        read_picture(array)


def test_a_tiff_that_states_all_of_its_16_bits_has_the_pixels_that_pillow_gives(tmp_path):
    values = colours(of_bits(16))
    file = write_tiff(tmp_path / "a.tif", values, photometric=2, _281=(3, (65535,) * 3))
    np.testing.assert_array_equal(np.asarray(read_picture(file)), values >> 8)


def test_a_tiff_that_the_caller_has_loaded(tmp_path):
    plain = write_tiff(tmp_path / "a.tif", colours(of_bits(16)), photometric=2)
    twelve = colours(of_bits(12))
    stated = write_tiff(tmp_path / "b.tif", twelve, photometric=2, _281=(3, (4095,) * 3))
    with Image.open(plain) as image:
        image.load()
        assert_is_the_ramp(image)
    with Image.open(stated) as image:
        assert_is_the_ramp(image)  # loads it
        with pytest.raises(UnreadablePicture, match=r"b\.tif.*give its path"):
            read_picture(image)


def test_a_deep_pil_image_in_memory():
    assert_is_the_ramp(Image.fromarray(of_bits(16)))
    with pytest.raises(UnreadablePicture, match="image of the mode I cannot be read"):
        read_picture(Image.fromarray(GREY_8.astype(np.int32)))


# --------------------------------------------------------------------------- files
FOREIGN = {
    "empty": (b"", "it is empty"),
    "zeros": (bytes(3000), "nothing but zeros"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "iphone": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image.*save it as JPEG"),
    "jxl": (b"\xff\x0a\xfa\x7f", "a JPEG XL image"),
    "jxl box": (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    "video": (b"\0\0\0\x20ftypisom\0\0\x02\0", "a video"),
    "scan": (bytes(128) + b"DICM\x02\0", "a DICOM image"),
    "drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing"),
    "paper": (b"%PDF-1.7", "a document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "archive": (b"PK\x03\x04\x14\0", "an archive.*unpack"),
    "array": (b"\x93NUMPY\x01\0", "a numpy array"),
    "cut": (b"\xff\xd8\xff\xe0 no picture", "Truncated"),
    "text": (b"hello", "no image of a format that Pillow knows"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_image_is_named(tmp_path, case):
    content, reason = FOREIGN[case]
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(UnreadablePicture, match=rf"photo\.jpg.*{reason}") as caught:
        read_picture(tmp_path / "photo.jpg")
    assert isinstance(caught.value, NPTError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_named(tmp_path, suffix, part):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UnreadablePicture, match=rf"photo\.{suffix}"):
        read_picture(path)


def test_there_is_no_file(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path, str(tmp_path / "gone.png")):
        with pytest.raises(MissingPicture, match="There is no image at"):
            read_picture(path)


def test_sizes(tmp_path, monkeypatch):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert read_picture(tmp_path / "dot.png").size == (1, 1)
    Image.new("RGB", (1, 5000)).save(tmp_path / "line.png")
    with pytest.raises(UnreadablePicture, match=r"line\.png.*1 x 5000 pixels"):
        read_picture(tmp_path / "line.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (40, 40)).save(tmp_path / "huge.png")
    with pytest.raises(UnreadablePicture, match=r"huge\.png.*1600 pixels.*smaller copy"):
        read_picture(tmp_path / "huge.png")


def test_reading_needs_no_torch():
    code = "import sys, npt.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
