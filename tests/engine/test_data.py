"""Datum, datasets, few-shot sampling, samplers, transforms, loaders."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, data_manager
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.utils.errors import InvalidValue


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("image") / "x.png"
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3) * 7 % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def make(image):
    """Builds a list of Datum from labels and domains, all with the same image file."""

    def build(labels, domains=None):
        domains = domains or [0] * len(labels)
        return [
            Datum(image, label, domain, f"class{label}")
            for label, domain in zip(labels, domains, strict=True)
        ]

    return build


def input_cfg(*transforms, **values):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = transforms
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in values.items():
        cfg.INPUT[key] = value
    return cfg


# ---------------------------------------------------------------------------- datum, dataset


def test_datum(image, tmp_path):
    datum = Datum(image, 3, 1, "cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == (image, 3, 1, "cat")
    for name in ("impath", "label", "domain", "classname"):
        with pytest.raises(AttributeError):
            setattr(datum, name, 0)
    assert pickle.loads(pickle.dumps(datum)).label == 3
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        Datum(str(tmp_path / "gone.png"))
    with pytest.raises(TypeError, match="string"):
        Datum(tmp_path)


def test_replacing_a_list_does_not_change_the_classes(make):
    dataset = DatasetBase(train_x=make([0, 2, 1, 2]), val=make([0]), test=make([1]))
    dataset._train_x = make([1])
    assert dataset.num_classes == 3
    assert dataset.classnames == ["class0", "class1", "class2"]
    assert dataset.lab2cname == {0: "class0", 1: "class1", 2: "class2"}
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (1, 1, 1)
    assert dataset.train_u is None


def test_dataset_with_a_class_that_has_no_training_image(make):
    dataset = DatasetBase(train_x=make([0, 2]), test=make([0, 1, 2]))
    assert dataset.classnames == ["class0", "class1", "class2"]
    with pytest.warns(UserWarning, match="without gaps"):
        assert DatasetBase(train_x=make([0, 2]), test=make([0])).num_classes == 3
    with pytest.raises(ValueError, match="empty"):
        DatasetBase(train_x=[], test=[])


def test_fewshot(make, capsys):
    items = make([2] * 5 + [0] * 5 + [1] * 2)
    dataset = DatasetBase(train_x=items, test=items)
    random.seed(3)
    drawn = dataset.generate_fewshot_dataset(items, num_shots=3)
    assert capsys.readouterr().out == "Creating a 3-shot dataset\n"
    assert [d.label for d in drawn] == [2] * 3 + [0] * 3 + [1] * 2
    random.seed(3)
    assert drawn[:3] == random.sample(items[:5], 3)
    assert drawn[3:6] == random.sample(items[5:10], 3)
    repeated = dataset.generate_fewshot_dataset(items, num_shots=3, repeat=True)
    assert Counter(d.label for d in repeated) == {0: 3, 1: 3, 2: 3}
    assert dataset.generate_fewshot_dataset(items) is items
    train, val = dataset.generate_fewshot_dataset(items, items[:5], num_shots=1)
    assert (len(train), len(val)) == (3, 1)


def test_split_and_domains(make):
    items = make([1, 0, 1], domains=[2, 5, 5])
    dataset = DatasetBase(train_x=items, test=items)
    assert list(dataset.split_dataset_by_label(items)) == [1, 0]
    assert [len(v) for v in dataset.split_dataset_by_domain(items).values()] == [1, 2]
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match=r"TARGET_DOMAINS.*clipart.*photo, sketch"):
        dataset.check_input_domains(["photo"], ["clipart"])


def test_unknown_dataset():
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Nothing"
    with pytest.raises(ValueError, match="Nothing"):
        build_dataset(cfg)


# ----------------------------------------------------------------------------------- samplers


def test_random_domain_sampler(make):
    items = make([0] * 30, domains=[0] * 12 + [1] * 10 + [2] * 8)
    sampler = build_sampler("RandomDomainSampler", None, items, batch_size=6, n_domain=0)
    order = list(sampler)
    assert len(set(order)) == len(order) == len(sampler) == 24
    for i in range(0, len(order), 6):
        assert Counter(items[j].domain for j in order[i : i + 6]) == {0: 2, 1: 2, 2: 2}
    two = list(build_sampler("RandomDomainSampler", None, items, batch_size=6, n_domain=2))
    assert all(len({items[j].domain for j in two[i : i + 6]}) == 2 for i in range(0, len(two), 6))
    with pytest.raises(ValueError, match="N_DOMAIN"):
        build_sampler("RandomDomainSampler", None, items, batch_size=7)
    with pytest.raises(ValueError, match="only 3"):
        build_sampler("RandomDomainSampler", None, items, batch_size=8, n_domain=4)


def test_seq_domain_sampler(make):
    items = make([0] * 12, domains=[0] * 7 + [1] * 5)
    sampler = build_sampler("SeqDomainSampler", None, items, batch_size=2)
    order = list(sampler)
    assert [items[i].domain for i in order] == [0, 0, 1, 1] * 2
    assert len(sampler) == 8


def test_random_class_sampler(make):
    items = make([0] * 9 + [1] * 4 + [2] * 2 + [3] * 1)
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=4, n_ins=2)
    for _ in range(5):
        order = list(sampler)
        assert len(order) == len(sampler)
        for i in range(0, len(order), 4):
            assert sorted(Counter(items[j].label for j in order[i : i + 4]).values()) == [2, 2]
    with pytest.raises(ValueError, match="N_INS"):
        build_sampler("RandomClassSampler", None, items, batch_size=5, n_ins=2)
    with pytest.raises(ValueError, match="only 4"):
        build_sampler("RandomClassSampler", None, items, batch_size=10, n_ins=2)


def test_plain_samplers(make):
    items = make([0, 1, 2])
    assert list(build_sampler("SequentialSampler", None, items)) == [0, 1, 2]
    assert sorted(build_sampler("RandomSampler", None, items)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"Shuffled.*RandomSampler"):
        build_sampler("Shuffled", None, items)


# --------------------------------------------------------------------------------- transforms

ORDER = [
    ("random_translation", "Random2DTranslation"),
    ("random_crop", "RandomCrop"),
    ("random_resized_crop", "RandomResizedCrop"),
    ("random_flip", "RandomHorizontalFlip"),
    ("randaugment", "RandAugment"),
    ("colorjitter", "ColorJitter"),
    ("randomgrayscale", "RandomGrayscale"),
    ("gaussian_blur", "RandomApply"),
    (None, "ToTensor"),
    ("cutout", "Cutout"),
    ("normalize", "Normalize"),
    ("gaussian_noise", "GaussianNoise"),
]


def steps(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_all_transforms_in_order(capsys, image):
    names = [name for name, _ in ORDER if name]
    transform = build_transform(input_cfg(*reversed(names), GB_K=3))
    assert steps(transform) == [cls for _, cls in ORDER]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Building transform_train"
    assert len(lines) == 1 + len(ORDER)
    assert all(line.startswith("+ ") for line in lines[1:])
    out = transform(Image.open(image))
    assert out.shape == (3, 8, 8)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "resized"),
    [
        ((), True),
        (("random_flip",), True),
        (("random_crop",), False),
        (("random_resized_crop", "normalize"), False),
    ],
)
def test_resize_only_without_a_random_crop(names, resized):
    assert ("Resize" in steps(build_transform(input_cfg(*names)))) == resized


def test_settings_reach_the_transforms():
    cfg = input_cfg("random_resized_crop", "normalize", RRCROP_SCALE=(0.5, 1.0))
    cfg.INPUT.INTERPOLATION = "bicubic"
    crop, _, norm = build_transform(cfg).transforms
    assert tuple(crop.scale) == (0.5, 1.0)
    assert crop.interpolation == INTERPOLATION_MODES["bicubic"]
    assert list(norm.mean) == cfg.INPUT.PIXEL_MEAN


def test_test_transform(image, capsys):
    cfg = input_cfg("random_resized_crop", "normalize")
    cfg.INPUT.SIZE = (8, 6)
    transform = build_transform(cfg, is_train=False)
    assert steps(transform) == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert transform.transforms[0].size in (8, [8])  # the smaller edge
    assert capsys.readouterr().out.startswith("Building transform_test\n+ resize")
    out = transform(Image.open(image))
    assert out.shape == (3, 8, 6)
    assert torch.equal(out, transform(Image.open(image)))


def test_random_transforms(image):
    from dassl.data.transforms.transforms import (
        Cutout,
        GaussianNoise,
        InstanceNormalization,
        Random2DTranslation,
    )

    torch.manual_seed(0)
    ones = torch.ones(3, 8, 8)
    assert (Cutout(1, 4)(ones) == 0).any() and (ones == 1).all()
    assert torch.equal(GaussianNoise(p=0.0)(ones), ones)
    assert not torch.equal(GaussianNoise(p=1.0)(ones), ones)
    normal = InstanceNormalization()(torch.randn(3, 8, 8) * 5 + 2)
    assert normal.mean().abs() < 1e-5
    picture = Image.open(image)
    for p in (0.0, 1.0):
        moved = Random2DTranslation(8, 10, p, INTERPOLATION_MODES["bilinear"])(picture)
        assert moved.size == (10, 8)


def test_transform_errors_and_none(capsys):
    with pytest.raises(ValueError, match=r"INPUT.TRANSFORMS.*spin.*random_flip"):
        build_transform(input_cfg("spin"))
    with pytest.raises(ValueError, match=r"INPUT.INTERPOLATION.*bicubic"):
        build_transform(input_cfg(INTERPOLATION="cubic"))
    for values in ({"SIZE": (8,)}, {"SIZE": (0, 8)}):
        with pytest.raises(InvalidValue, match=r"INPUT\.SIZE is .*height and width"):
            build_transform(input_cfg(**values))
    with pytest.raises(InvalidValue, match="value under INPUT"):  # an even kernel
        build_transform(input_cfg("gaussian_blur", GB_K=4))
    assert build_transform(input_cfg(NO_TRANSFORM=True)) is None
    assert "NO_TRANSFORM" in capsys.readouterr().out
    assert steps(build_transform(input_cfg("normalize"), choices=["cutout"])) == [
        "Resize",
        "ToTensor",
        "Cutout",
    ]


# ------------------------------------------------------------------------------------ loaders


def test_items(make, image):
    cfg = input_cfg("normalize")
    dataset = DatasetWrapper(cfg, make([4], [2]), transform=build_transform(cfg), is_train=True)
    item = dataset[0]
    assert set(item) == {"img", "label", "domain", "impath", "index"}
    assert (item["label"], item["domain"], item["impath"], item["index"]) == (4, 2, image, 0)
    plain = DatasetWrapper(cfg, make([4]))[0]["img"]
    assert plain.size == (30, 20)


def test_several_views(make):
    cfg = input_cfg("random_flip")
    cfg.DATALOADER.K_TRANSFORMS = 3
    cfg.DATALOADER.RETURN_IMG0 = True
    transform = build_transform(cfg)
    item = DatasetWrapper(cfg, make([0]), transform=transform, is_train=True)[0]
    assert len(item["img"]) == 3
    assert item["img0"].shape == (3, 8, 8)
    test_item = DatasetWrapper(cfg, make([0]), transform=transform)[0]
    assert test_item["img"].shape == (3, 8, 8)
    cfg.DATALOADER.K_TRANSFORMS = 1
    weak_strong = DatasetWrapper(cfg, make([0]), transform=[transform, transform], is_train=True)
    assert {"img", "img2", "img0"} <= set(weak_strong[0])
    cfg.DATALOADER.K_TRANSFORMS = 2
    with pytest.raises(InvalidValue, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, make([0]), is_train=True)
    cfg.DATALOADER.K_TRANSFORMS = 0
    with pytest.raises(InvalidValue, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, make([0]), transform=transform, is_train=True)


def test_drop_last(make):
    cfg = input_cfg()
    transform = build_transform(cfg)

    def lengths(count, is_train):
        loader = build_data_loader(
            cfg, data_source=make([0] * count), batch_size=4, tfm=transform, is_train=is_train
        )
        return [len(batch["label"]) for batch in loader]

    assert lengths(10, True) == [4, 4]
    assert lengths(3, True) == [3]
    assert lengths(10, False) == [4, 4, 2]
    with pytest.raises(InvalidValue, match=r"empty.*DATASET.ROOT"):
        lengths(0, True)


def test_loader_settings_that_cannot_be_used(make):
    cfg = input_cfg()
    with pytest.raises(InvalidValue, match="BATCH_SIZE"):
        build_data_loader(cfg, data_source=make([0]), batch_size=0)
    cfg.DATALOADER.NUM_WORKERS = -1
    with pytest.raises(InvalidValue, match="NUM_WORKERS"):
        build_data_loader(cfg, data_source=make([0]), batch_size=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_is_seeded(make, workers):
    """Equal seeds give equal augmentations in workers, also with numpy's and Python's generator."""
    cfg = input_cfg("random_resized_crop")
    cfg.DATALOADER.NUM_WORKERS = workers
    crop = build_transform(cfg)

    def noisy(image):
        return crop(image) + np.random.rand() + random.random()

    seen = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        loader = build_data_loader(
            cfg, "RandomSampler", make([0, 1, 2, 3] * 2), batch_size=4, tfm=noisy
        )
        seen.append([(b["index"].tolist(), b["img"]) for b in loader])
    for (a, x), (b, y) in zip(*seen, strict=True):
        assert a == b
        assert torch.equal(x, y)


def test_data_manager(host, root, capsys):
    cfg = host.config(root, "unused")
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains) == (3, 0)
    assert dm.lab2cname == {0: "red", 1: "green", 2: "blue"}
    assert dm.train_loader_u is None
    assert len(dm.train_loader_x.dataset) == 24
    labels = torch.cat([batch["label"] for batch in dm.test_loader]).tolist()
    assert labels == sorted(labels)  # sequential
    out = capsys.readouterr().out
    assert (
        "Loading dataset: Colours\nCreating a 8-shot dataset\nBuilding transform_train\n+ " in out
    )
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines() if line.startswith(("#", "D")))
    assert rows == {"Dataset": "Colours", "# classes": "3", "# train_x": "24", "# val": "12"} | {
        "# test": "18"
    }


def test_custom_transform_and_wrapper(host, root, capsys):
    class Wrapper(DatasetWrapper):
        pass

    cfg = host.config(root, "unused")
    own = build_transform(cfg, is_train=False)
    dm = DataManager(cfg, custom_tfm_train=own, custom_tfm_test=own, dataset_wrapper=Wrapper)
    assert dm.train_loader_x.dataset.transform is own
    assert isinstance(dm.test_loader.dataset, Wrapper)
    assert "* Using custom transform for training" in capsys.readouterr().out


def test_build_dataset_is_looked_up_when_called(host, root, monkeypatch):
    original = data_manager.build_dataset

    def wrapped(cfg):
        dataset = original(cfg)
        dataset._train_x = dataset.train_x[:9]
        return dataset

    monkeypatch.setattr(data_manager, "build_dataset", wrapped)
    dm = DataManager(host.config(root, "unused"))
    assert len(dm.train_loader_x.dataset) == 9
    assert dm.num_classes == 3


def test_unreadable_image_names_the_file(tmp_path):
    path = tmp_path / "bad.png"
    path.write_text("not a picture")
    cfg = input_cfg()
    cfg.DATALOADER.NUM_WORKERS = 1
    loader = build_data_loader(cfg, data_source=[Datum(str(path))], tfm=build_transform(cfg))
    with pytest.raises(OSError, match=r"bad\.png"):
        next(iter(loader))
