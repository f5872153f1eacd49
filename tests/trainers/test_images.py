"""The cache of decoded images: the same batches, from files that are read once."""

import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import npt  # noqa: F401  makes dassl importable
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from npt.engine import EMBEDDED
from npt.trainers import images
from npt.trainers.images import KeptImages


@pytest.fixture
def items(tmp_path):
    """Twelve images of different sizes, one of them grey."""
    rng = np.random.default_rng(0)
    out = []
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        shape = (30 + 3 * i, 50 - 2 * i) if i == 5 else (30 + 3 * i, 50 - 2 * i, 3)
        path = tmp_path / "pictures" / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        out.append(Datum(str(path), label=i % 3))
    return out


def config(workers=0):
    cfg = get_cfg_default()
    cfg.USE_CUDA = False
    cfg.INPUT.SIZE = (24, 24)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = workers
    return cfg


def epochs(cfg, items, wrapper, between=None, count=2):
    torch.manual_seed(0)
    loader = build_data_loader(
        cfg, "RandomSampler", items, 4, tfm=build_transform(cfg, is_train=True),
        dataset_wrapper=wrapper,
    )  # fmt: skip
    out = []
    for epoch in range(count):
        if epoch and between:
            between()
        out += [(batch["img"], batch["label"], batch["index"]) for batch in loader]
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_files_are_read_once(workers, items, tmp_path):
    cfg = config(workers)
    plain = epochs(cfg, items, DatasetWrapper)
    kept = epochs(cfg, items, KeptImages, lambda: shutil.rmtree(tmp_path / "pictures"))
    for one, other in zip(plain, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_that_do_not_fit_are_read_every_time(items, monkeypatch):
    monkeypatch.setattr(images, "free_bytes", lambda device: 4 * 20_000)
    cfg = config()
    plain = epochs(cfg, items, DatasetWrapper)
    for one, other in zip(plain, epochs(cfg, items, KeptImages), strict=True):
        assert torch.equal(one[0], other[0])
    wrapper = KeptImages(cfg, items, is_train=True)
    pixels = [wrapper[i]["img"].tobytes() for i in range(len(items))]
    for item in items:
        os.unlink(item.impath)
    assert wrapper[0]["img"].tobytes() == pixels[0]
    with pytest.raises(FileNotFoundError):
        wrapper[len(items) - 1]


@pytest.mark.parametrize("rotate", [False, True])
def test_images_turned_as_their_cameras_noted(tmp_path, rotate):
    cfg, items = config(), []
    cfg.INPUT.EXIF_ROTATE = rotate
    for turn in range(1, 9):
        exif, path = Image.Exif(), tmp_path / f"{turn}.jpg"
        exif[0x0112] = turn
        pixels = np.random.default_rng(turn).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        items.append(Datum(str(path), label=0))
    kept = KeptImages(cfg, items, is_train=True)
    for _ in range(2):  # decoded, and from the cache
        for i, item in enumerate(items):
            with Image.open(item.impath) as image:
                expected = (ImageOps.exif_transpose(image) if rotate else image).copy()
            for wrapper in (kept, DatasetWrapper(cfg, items)):
                found = wrapper[i]["img"]
                assert found.size == expected.size and found.tobytes() == expected.tobytes()


def test_an_installed_dassl_reads_images_as_the_embedded_engine(python, tmp_path):
    """A Dassl with the reading of Dassl 0.6: the embedded engine at another place."""
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "dassl")
    for name in ("data_manager", "tools"):
        (file,) = (tmp_path / "dassl").glob(f"*/{name}.py")
        text = file.read_text()
        text = re.sub(r"read_image\(path, upright=.*\)", "read_image(path)", text)
        old = "from PIL import Image\n\n\ndef read_image(path):\n"
        old += "    return Image.open(path).convert('RGB')\n\n\n"
        text = re.sub(r"def read_image.*?(?=def set)", old, text, flags=re.DOTALL)
        file.write_text(text)
    Image.fromarray(np.full((4, 6), 30_000, np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "phone.jpg", exif=exif)
    code = (
        "import npt.engine, npt\n"
        "from dassl.config import get_cfg_default\n"
        "from dassl.data.data_manager import DatasetWrapper\n"
        "from dassl.data.datasets import Datum\n"
        "from dassl.utils import read_image\n"
        "cfg = get_cfg_default(); cfg.INPUT.EXIF_ROTATE = True\n"
        "data = DatasetWrapper(cfg, [Datum('deep.png'), Datum('phone.jpg')])\n"
        "print(npt.engine.describe().name, *read_image('deep.png').getpixel((0, 0)))\n"
        "print(*data[0]['img'].getpixel((0, 0)), *data[1]['img'].size)\n"
    )
    done = python("-W", "ignore", "-c", code, cwd=tmp_path, NPT_ENGINE="installed")
    lines = done.stdout.splitlines()
    assert lines == ["installed 255 255 255", "117 117 117 4 6"], done.stdout + done.stderr


def test_only_training_images_are_cached(items):
    assert KeptImages(config(), items, is_train=False)._cache is None
    assert KeptImages(config(), items, is_train=True)._cache is not None


def test_a_pickled_cache_decodes_again(items):
    wrapper = KeptImages(config(), items, is_train=True)
    image = wrapper[5]["img"]
    copy = pickle.loads(pickle.dumps(wrapper))
    assert image.mode == "RGB" and copy[5]["img"].tobytes() == image.tobytes()


def test_the_error_names_a_file_that_is_not_an_image(items):
    with open(items[3].impath, "wb") as file:
        file.write(b"no image")
    wrapper = KeptImages(config(), items, is_train=True)
    wrapper[2]
    with pytest.raises(OSError, match=r"3\.png"):
        wrapper[3]


def test_a_file_that_changes_size_is_read_again(items):
    wrapper = KeptImages(config(), items, is_train=True)
    Image.new("RGB", (7, 9), "red").save(items[0].impath)
    assert wrapper[0]["img"].size == (7, 9)
