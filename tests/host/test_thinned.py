"""Data sets of hosts and the keys DATASET.IMBALANCE_*: each is thinned once."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import npt  # noqa: F401  first: the engine and its keys
from dassl.config import get_cfg_default
from dassl.data import data_manager
from dassl.data.datasets import build_dataset
from npt.errors import NPTError
from npt.host import thinning
from npt.host.thinning import WatchedNode, ratio_watched
from npt.imbalance import TYPES, imbalanced_counts

FILE = Path(__file__).parent / "repo" / "datasets" / "skewed.py"
OBEYED = {  # at ratio 0.05, from sizes of 30, 9, 24, 17, 12
    -1: [30, 1, 14, 6, 3],
    16: [16, 1, 7, 3, 1],
}


@pytest.fixture(scope="module")
def skewed():
    spec = importlib.util.spec_from_file_location("skewed_of_a_host", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(skewed):
    def make(name: str, *pairs: object):
        cfg = get_cfg_default()
        cfg.merge_from_list(["DATASET.NAME", name, "SEED", 1, *pairs])
        cfg.freeze()
        return cfg

    return make


def build(cfg):
    """The class counts of the data set, with the same random state at the start each time."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    dataset = data_manager.build_dataset(cfg)
    counts = Counter(item.label for item in dataset.train_x)
    return dataset, [counts[label] for label in range(dataset.num_classes)]


def states() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


READS = {
    "attribute": lambda cfg: cfg.DATASET.IMBALANCE_RATIO,
    "item": lambda cfg: cfg["DATASET"]["IMBALANCE_RATIO"],
    "get": lambda cfg: cfg.DATASET.get("IMBALANCE_RATIO", 1.0),
    "getattr": lambda cfg: getattr(cfg.DATASET, "IMBALANCE_RATIO", 1.0),
    "items": lambda cfg: dict(cfg.DATASET.items())["IMBALANCE_RATIO"],
    "dict": lambda cfg: dict(cfg.DATASET)["IMBALANCE_RATIO"],
    "values": lambda cfg: list(cfg.DATASET.values())[list(cfg.DATASET).index("IMBALANCE_RATIO")],
    "unpacked": lambda cfg: {**cfg.DATASET}["IMBALANCE_RATIO"],
    "clone": lambda cfg: cfg.clone().DATASET.IMBALANCE_RATIO,
    "node": lambda cfg: cfg.DATASET.clone()["IMBALANCE_RATIO"],
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("shots", OBEYED)
def test_a_data_set_that_obeys_the_ratio_is_not_thinned_again(
    skewed, config, monkeypatch, capsys, read, shots
):
    monkeypatch.setattr(skewed.Skewed, "ratio_of", staticmethod(READS[read]))
    pairs = ("DATASET.NUM_SHOTS", shots, "DATASET.IMBALANCE_RATIO", 0.05)
    dataset, counts = build(config("Skewed", *pairs))
    assert counts == OBEYED[shots]
    after, lines = states(), capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"Imbalance ratio 0.05, by the data set Skewed itself: {sum(counts)} training images, "
        f"{max(counts)} to 1 a class",
        f"Ratio obtained: {1 / max(counts):.3g}; classes with one image: {counts.count(1)}",
    ]
    # the same images and random states as without NPT, and no more output
    monkeypatch.setattr(data_manager, "build_dataset", build_dataset)
    alone, _ = build(config("Skewed", *pairs))
    assert [id_of(x) for x in alone.train_x] == [id_of(x) for x in dataset.train_x]
    assert states() == after
    assert capsys.readouterr().out.splitlines() == lines[:-2]


def id_of(item):
    return item.label, item.domain


@pytest.mark.parametrize("sizes", [[1, 2, 5, 11, 24], [1, 2, 2, 3, 24], [2, 2, 2]])
@pytest.mark.parametrize("ratio", [0.5, 0.05])
def test_a_rule_without_effect_on_few_images_is_one_too(
    skewed, config, monkeypatch, capsys, sizes, ratio
):
    """The data set keeps all that it has at this ratio; by label, NPT would take more away."""
    monkeypatch.setattr(skewed, "SIZES", sizes)
    _, counts = build(config("Skewed", "DATASET.IMBALANCE_RATIO", ratio))
    ranked = sorted(sizes, reverse=True)
    rule = imbalanced_counts(ranked[0], ratio, len(sizes))
    assert sorted(counts, reverse=True) == [min(a, b) for a, b in zip(rule, ranked, strict=True)]
    assert sizes == [2, 2, 2] or ratio < 0.5 or counts == sizes
    assert "by the data set Skewed itself" in capsys.readouterr().out


def test_counts_that_follow_the_rule_by_chance_are_thinned(skewed, config, monkeypatch):
    monkeypatch.setattr(skewed, "SIZES", [1, 2, 5, 11, 24])
    assert build(config("Logged", "DATASET.IMBALANCE_RATIO", 0.05))[1] == [1, 2, 5, 2, 1]


def test_a_rule_that_the_counts_show_needs_no_second_build(skewed, config, monkeypatch):
    monkeypatch.setattr(skewed.SkewedOnce, "built", False)
    monkeypatch.setattr(thinning, "_counts_at", lambda *_: pytest.fail("built again"))
    pairs = ("DATASET.NUM_SHOTS", 9, "DATASET.IMBALANCE_RATIO", 0.2)
    assert sorted(build(config("Skewed", *pairs))[1]) == [1, 2, 4, 6, 9]


@pytest.mark.parametrize("shots", [-1, 8])
def test_a_data_set_that_only_prints_the_ratio_is_thinned(config, monkeypatch, capsys, shots):
    """Also where its classes are unequal by themselves; it prints once."""
    pairs = ("DATASET.NUM_SHOTS", shots, "DATASET.IMBALANCE_RATIO", 0.05)
    _, counts = build(config("Logged", *pairs))
    most = 30 if shots < 1 else 8
    wanted = imbalanced_counts(most, 0.05, 5)
    assert counts == [min(a, b) for a, b in zip(wanted, [30, 9, 24, 17, 12], strict=True)]
    after, output = states(), capsys.readouterr().out
    assert output.count("ratio 0.05\n") == 1 and "(label order)" in output
    monkeypatch.setattr(data_manager, "build_dataset", build_dataset)
    build(config("Logged", *pairs))
    assert states() == after


def test_a_data_set_that_can_be_built_only_once_is_believed(skewed, config, monkeypatch):
    """Its counts at NUM_SHOTS 20 do not follow the rule, as a class has too few images."""
    monkeypatch.setattr(skewed.SkewedOnce, "built", False)
    monkeypatch.setattr(skewed, "SIZES", [30, 9, 2, 2, 2])
    _, counts = build(config("SkewedOnce", "DATASET.IMBALANCE_RATIO", 0.2))
    assert counts == [30, 9, 2, 2, 2]


@pytest.mark.parametrize("name", ["Skewed", "Logged", "Equal"])
def test_at_ratio_one_nothing_changes(config, capsys, name):
    _, counts = build(config(name))
    assert counts == ([40] * 24 if name == "Equal" else [30, 9, 24, 17, 12])
    assert "Imbalance" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [("IMBALANCE_ORDER", "frequency"), ("IMBALANCE_TYPE", "step")],
)
def test_keys_without_effect_on_a_data_set_s_own_rule_are_refused(config, key, value):
    pairs = ("DATASET.IMBALANCE_RATIO", 0.05, f"DATASET.{key}", value)
    with pytest.raises(NPTError, match=rf"DATASET\.{key} is {value}, but the data set Skewed"):
        build(config("Skewed", *pairs))
    build(config("Logged", *pairs))


def test_the_natural_type_acts_on_such_a_data_set_at_ratio_one(config):
    assert build(config("Skewed", "DATASET.IMBALANCE_TYPE", "natural"))[1] == [30, 9, 24, 17, 12]


def test_the_config_is_the_same_object_while_it_is_watched(config):
    cfg = config("Skewed", "DATASET.IMBALANCE_RATIO", 0.05)
    before, node = cfg.clone(), cfg.DATASET
    with ratio_watched(cfg) as reads:
        assert cfg.DATASET is node and cfg == before
        assert isinstance(node, type(before.DATASET)) and cfg.is_frozen() and node.is_frozen()
        assert cfg.DATASET.get("NOTHING", 3) == 3 and cfg.DATASET.NUM_SHOTS == -1
        assert not reads
        assert str(cfg) == str(before)
        with ratio_watched(cfg) as inner:  # a data set that builds another one
            assert node.IMBALANCE_RATIO == 0.05 and inner is reads
        assert reads and type(node) is WatchedNode
    assert type(node) is type(before.DATASET)


@pytest.mark.parametrize("name", ["Equal", "Repeated"])
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "natural"])
def test_the_largest_class_has_at_most_the_images_that_there_are(config, name, kind):
    """24 classes of 40 images, at NUM_SHOTS 100. A draw with repetition has 100 images a class."""
    pairs = ("DATASET.NUM_SHOTS", 100, "DATASET.IMBALANCE_RATIO", 0.02)
    _, counts = build(config(name, *pairs, "DATASET.IMBALANCE_TYPE", kind))
    n_max = 40 if name == "Equal" else 100
    if kind == "balanced_budget":
        assert sum(counts) == sum(imbalanced_counts(n_max, 0.02, 24))
    else:
        assert (max(counts), min(counts)) == (n_max, max(1, int(0.02 * n_max)))
    if name == "Equal" and kind != "step":
        assert sum(counts) == 244
