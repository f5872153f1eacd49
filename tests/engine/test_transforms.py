"""Images and settings that a transform cannot take."""

import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.utils.errors import InvalidValue


def transform(name, size, **values):
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS, cfg.INPUT.SIZE = [name], size
    for key, value in values.items():
        cfg.INPUT[key] = value
    return build_transform(cfg)


def test_a_blur_fits_the_image():
    blur = transform("gaussian_blur", (12, 8), GB_K=15, GB_P=1.0)
    assert blur(Image.new("RGB", (30, 30))).shape == (3, 12, 8)
    with pytest.raises(InvalidValue, match=r"GB_K is 17.*\(12, 8\).*at most 15"):
        transform("gaussian_blur", (12, 8), GB_K=17)


def test_a_crop_fits_the_image():
    crop = transform("random_crop", (10, 12), CROP_PADDING=1)
    assert crop(Image.new("RGB", (10, 8))).shape == (3, 10, 12)
    for image in (Image.new("RGB", (9, 8)), Image.new("RGB", (10, 7))):
        with pytest.raises(InvalidValue, match=r"padded by 1.*INPUT\.SIZE \(10, 12\)"):
            crop(image)
