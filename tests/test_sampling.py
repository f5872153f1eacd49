"""How often an epoch draws each class, and the sampler that does it, on both engines."""

import math
import shutil
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import RandomSampler

import npt  # noqa: F401  lets dassl be imported
from dassl.config import get_cfg_default
from dassl.data import DataManager, data_manager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.samplers import build_sampler
from dassl.utils.errors import InvalidValue
from npt.engine import EMBEDDED, Engine
from npt.errors import NPTError
from npt.host import sampling
from npt.sampling import ClassBalancedSampler, expected_draws, rounded

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
POWERS = st.one_of(st.sampled_from([0, 0.5, 1]), st.floats(0, 1))


class Item(NamedTuple):
    label: int
    number: int


def items(counts):
    """Items of classes 0, 1, ... of the given sizes, with the classes mixed."""
    found = [Item(label, i) for label, count in enumerate(counts) for i in range(count)]
    return sorted(found, key=lambda item: item.number)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------- expected draws
@given(COUNTS, POWERS)
def test_expected_draws_are_those_of_the_formula(counts, power):
    n = np.array(counts, dtype=np.float64)
    chance = np.where(n > 0, np.maximum(n, 1) ** (1 - power), 0)
    expected = n.sum() * chance / max(chance.sum(), 1)
    got = expected_draws(counts, power)
    assert np.allclose(got, expected, rtol=1e-12, atol=0)
    assert math.isclose(math.fsum(got), sum(counts), rel_tol=1e-12)
    for count, draws in zip(counts, got, strict=True):
        assert draws > 1 - 1e-12 if count else draws == 0


@given(COUNTS)
def test_power_0_is_the_data_and_power_1_gives_equal_shares(counts):
    assert expected_draws(counts, 0) == counts
    share = sum(counts) / (len(counts) - counts.count(0) or 1)
    assert expected_draws(counts, 1) == [share if count else 0 for count in counts]


def test_examples():
    assert expected_draws([16, 4, 1, 0], 0.5) == [12, 6, 3, 0]
    assert expected_draws([5, 0, 1], 1) == [3, 0, 3]
    assert expected_draws([0, 0], 1) == [0, 0] and expected_draws([], 1) == []


@pytest.mark.parametrize(
    "counts, power, words",
    [([3, -1], 0.5, "-1 images"), ([3], 1.1, "1.1"), ([3], -0.1, "-0.1"), ([3], math.nan, "nan")],
)
def test_invalid_arguments(counts, power, words):
    with pytest.raises(NPTError, match=words):
        expected_draws(counts, power)


# --------------------------------------------------------------------------- rounding
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), POWERS, st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_rounding_keeps_the_sum_and_whole_numbers(counts, power, seed):
    expected = expected_draws(counts, power)
    draws = rounded(expected, generator(seed))
    assert sum(draws) == sum(counts)
    for value, draw in zip(expected, draws, strict=True):
        assert abs(draw - value) < 1
        assert draw == value or value != int(value)


def test_rounding_is_right_on_average():
    values = [0.1, 2.75, 3.0, 0.4, 1.25, 0.5]
    rng = generator(0)
    mean = np.mean([rounded(values, rng) for _ in range(3000)], axis=0)
    assert np.abs(mean - values).max() < 0.04  # four standard errors


# --------------------------------------------------------------------------- the sampler
@given(COUNTS, POWERS, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_an_epoch(counts, power, seed):
    """As many images as there are; classes by their shares, the images of a class by theirs."""
    data = items(counts)
    sampler = ClassBalancedSampler(data, power)
    torch.manual_seed(seed)
    order = list(sampler)
    assert len(order) == len(sampler) == len(data)
    of_image = Counter(data[i] for i in order)
    of_class = Counter(data[i].label for i in order)
    for label, expected in enumerate(expected_draws(counts, power)):
        assert abs(of_class[label] - expected) < 1
        assert of_class[label] >= min(1, counts[label])
        uses = [of_image[label, i] for i in range(counts[label])]
        assert not uses or max(uses) - min(uses) <= 1


@pytest.mark.parametrize("counts, power", [((5, 1, 9), 0.0), ((4, 4, 4), 0.7), ((13,), 1.0)])
def test_where_no_class_is_rare_it_is_torch_s_random_sampler(counts, power):
    """In each epoch, and for the random numbers that a run draws after it."""
    data = items(counts)
    seen = []
    for sampler in (RandomSampler(data), ClassBalancedSampler(data, power)):
        torch.manual_seed(5)
        seen.append(([list(sampler) for _ in range(3)], torch.rand(2).tolist()))
    assert seen[0] == seen[1]


def test_over_many_epochs_images_and_places_have_equal_chances():
    data = items([10, 1])
    sampler = ClassBalancedSampler(data, 1.0)
    torch.manual_seed(0)
    epochs = [list(sampler) for _ in range(500)]
    used = Counter(data[i] for order in epochs for i in order)
    assert all(abs(used[0, i] / 500 - 0.55) < 0.09 for i in range(10))  # four standard errors
    assert abs(used[1, 0] / 500 - 5.5) < 0.09
    at_place = np.mean([[data[i].label for i in order] for order in epochs], axis=0)
    assert np.abs(at_place - 0.5).max() < 0.09


# --------------------------------------------------------------------------- the embedded engine
SIZES = (12, 3, 1)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """The name of a data set with SIZES training images of each class."""
    path = str(tmp_path_factory.mktemp("images") / "x.png")
    Image.new("RGB", (8, 8)).save(path)

    class Uneven(DatasetBase):
        def __init__(self, cfg):
            train = [Datum(path, item.label, 0, f"class{item.label}") for item in items(SIZES)]
            super().__init__(train_x=train, test=train)

    DATASET_REGISTRY.register(Uneven, force=True)
    return "Uneven"


def config(**keys):
    cfg = get_cfg_default()
    pairs = [x for key, value in keys.items() for x in (key.replace("__", "."), value)]
    cfg.merge_from_list(pairs)
    cfg.freeze()
    return cfg


def manager(uneven, sampler="ClassBalancedSampler", **keys):
    torch.manual_seed(0)
    return DataManager(
        config(
            DATASET__NAME=uneven,
            INPUT__SIZE=(8, 8),
            DATALOADER__NUM_WORKERS=0,
            DATALOADER__TRAIN_X__BATCH_SIZE=7,
            DATALOADER__TRAIN_X__SAMPLER=sampler,
            **keys,
        )
    )


def labels(loader):
    return Counter(loader.dataset.data_source[i].label for i in loader.order())


@pytest.mark.parametrize("power, expected", [(0, [12, 3, 1]), (1, [16 / 3] * 3)])
def test_the_loader_draws_by_the_power_of_the_config(uneven, power, expected):
    loader = manager(uneven, DATALOADER__TRAIN_X__BALANCE_POWER=power).train_loader_x
    drawn = labels(loader)
    assert all(abs(drawn[k] - expected[k]) < 1 for k in range(3))
    assert len(loader) == len(manager(uneven, "RandomSampler").train_loader_x)


def test_the_order_follows_from_seed_and_epoch(uneven):
    orders = []
    for _ in range(2):
        loader = manager(uneven).train_loader_x
        for epoch in range(4):
            loader.start_epoch(epoch)
            orders.append(loader.order())
    assert orders[:4] == orders[4:] and len(set(map(tuple, orders))) == 4


def test_an_epoch_is_continued_at_any_batch(uneven):
    loader = manager(uneven).train_loader_x
    loader.start_epoch(2)
    order = loader.order()
    loader.start_epoch(2, 1)
    assert [i for batch in loader for i in batch["index"].tolist()] == order[7:14]


def test_what_an_epoch_can_be_without_is_counted_in_draws(uneven, capsys):
    """16 draws, batches of 7, so 2 are left out; class2 has one image, drawn five times."""
    for sampler, rare in (("RandomSampler", "class2\n"), ("ClassBalancedSampler", "")):
        manager(uneven, sampler)
        out = capsys.readouterr().out
        assert "leaves out 2 of 16 images" in out
        assert out.partition("can be without them: ")[2] == rare


def test_an_unknown_sampler_names_it():
    with pytest.raises(InvalidValue, match=r'"ClassBalanced",.*one of .*ClassBalancedSampler'):
        build_sampler("ClassBalanced", get_cfg_default(), items(SIZES))


# --------------------------------------------------------------------------- keys
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, None, "half"])
def test_the_power_is_checked_for_every_trainer(value):
    cfg = get_cfg_default()
    cfg.DATALOADER.TRAIN_X.BALANCE_POWER = value
    with pytest.raises(NPTError, match=r"BALANCE_POWER is .*, but it must be .* 0 or more"):
        cfg.freeze()


@pytest.mark.parametrize("engine", ["embedded", "installed"])
@pytest.mark.parametrize(
    "name",
    ["ClassBalancedSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"],
)
def test_a_test_must_see_each_image_once(monkeypatch, engine, name):
    monkeypatch.setattr("npt.engine.describe", lambda: Engine(engine, "0.6.3", ""))
    with pytest.raises(NPTError, match=rf"TEST\.SAMPLER is '{name}', .* SequentialSampler"):
        config(DATALOADER__TEST__SAMPLER=name)
    for good in ("RandomSampler", "SequentialSampler", "OfAHost"):
        config(DATALOADER__TEST__SAMPLER=good)


# --------------------------------------------------------------------------- an installed Dassl
def test_the_wrapped_function_passes_other_names_on(monkeypatch):
    def theirs(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
        return sampler_type, cfg, data_source, batch_size, n_domain, n_ins

    monkeypatch.setattr(data_manager, "build_sampler", theirs)
    sampling.wrap_build_sampler()
    assert data_manager.build_sampler is theirs  # the embedded engine has it in its table
    monkeypatch.setattr(sampling.engine, "describe", lambda: Engine("installed", "0.6.3", ""))
    sampling.wrap_build_sampler()
    wrapped = data_manager.build_sampler
    sampling.wrap_build_sampler()
    assert data_manager.build_sampler is wrapped
    cfg, data = get_cfg_default(), items(SIZES)
    assert wrapped("Theirs", cfg=cfg, data_source=data, n_ins=3) == ("Theirs", cfg, data, 32, 0, 3)
    ours = wrapped("ClassBalancedSampler", cfg=cfg, data_source=data, batch_size=4)
    assert isinstance(ours, ClassBalancedSampler)


def test_an_installed_dassl_gets_the_sampler(python, tmp_path):
    """A Dassl without it: the embedded engine at another place, without its row."""
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "dassl")
    file = tmp_path / "dassl" / "data" / "samplers.py"
    lines = file.read_text().splitlines(keepends=True)
    others = [line for line in lines if not line.startswith('    "ClassBalancedSampler"')]
    assert len(others) == len(lines) - 1
    file.write_text("".join(others))
    code = (
        "import npt.engine, npt\n"
        "from types import SimpleNamespace as N\n"
        "from dassl.config import get_cfg_default\n"
        "from dassl.data.data_manager import build_data_loader\n"
        "cfg = get_cfg_default(); cfg.DATALOADER.NUM_WORKERS = 0\n"
        "cfg.DATALOADER.TRAIN_X.BALANCE_POWER = 0.5\n"
        "data = [N(label=k) for k, n in enumerate([16, 4, 1]) for _ in range(n)]\n"
        "loader = build_data_loader(cfg, 'ClassBalancedSampler', data, batch_size=7)\n"
        "drawn = [data[i].label for i in loader.order()]\n"
        "print(npt.engine.describe().name, len(loader), *map(drawn.count, range(3)))\n"
    )
    done = python("-W", "ignore", "-c", code, cwd=tmp_path, NPT_ENGINE="installed")
    assert done.stdout.split() == ["installed", "3", "12", "6", "3"], done.stderr
