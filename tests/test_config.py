"""The config keys: there for any host, mergeable as yacs trees are, and checked when frozen."""

import copy

import pytest
from yacs.config import CfgNode as CN

import npt  # noqa: F401  lets dassl be imported
from dassl.config import defaults as engine_defaults
from dassl.config import get_cfg_default
from npt import config
from npt.errors import NPTError


def test_the_paper_s_values_are_the_defaults():
    cfg = get_cfg_default()
    node = cfg.TRAINER.NPT
    assert (node.W1, node.W2, node.E_W, node.E_H, node.BASE) == (0.3, 0.8, 1.0, 1.0, "")
    assert node.REDUCTION in ("mean", "class", "sum")
    assert (cfg.DATASET.IMBALANCE_RATIO, cfg.DATASET.IMBALANCE_ORDER) == (1.0, "label")
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"
    cfg.freeze()


def test_registering_again_changes_nothing_and_overwrites_nothing():
    before = get_cfg_default()
    config.add_keys_to_defaults()
    assert get_cfg_default() == before
    engine_defaults._C.TRAINER.COOP.N_CTX = 4
    try:
        config.add_keys_to_defaults()
        assert engine_defaults._C.TRAINER.COOP.N_CTX == 4
    finally:
        engine_defaults._C.TRAINER.COOP.N_CTX = before.TRAINER.COOP.N_CTX


def test_files_and_lists_merge_and_integers_do_for_floats(tmp_path):
    file = tmp_path / "trainer.yaml"
    file.write_text(
        "TRAINER:\n  NPT:\n    W1: 1\n    REDUCTION: sum\n"
        "DATASET:\n  IMBALANCE_RATIO: 1\n  NUM_SHOTS: 16\nOPTIM:\n  LR: 1\n"
    )
    cfg = get_cfg_default()
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(["TRAINER.NPT.W2", "0", "TRAINER.NPT.E_W", 2, "OPTIM.LR", "0.0035"])
    cfg.freeze()
    values = (cfg.TRAINER.NPT.W1, cfg.TRAINER.NPT.W2, cfg.TRAINER.NPT.E_W, cfg.OPTIM.LR)
    assert values == (1.0, 0.0, 2.0, 0.0035)
    assert all(isinstance(value, float) for value in values)
    assert isinstance(cfg.DATASET.NUM_SHOTS, int)
    assert type(cfg.TRAINER.NPT) is CN  # hosts compare types of nodes when they merge


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("TRAINER.NPT.W1", "-0.1", "0 or more"),
        ("TRAINER.NPT.W2", "1e999", "finite"),
        ("TRAINER.NPT.E_W", "0", "above 0"),
        ("TRAINER.NPT.E_H", "-1", "above 0"),
        ("TRAINER.NPT.REDUCTION", "average", "mean, class, sum"),
        ("DATASET.IMBALANCE_RATIO", "0", r"\(0, 1\]"),
        ("DATASET.IMBALANCE_RATIO", "16", r"\(0, 1\]"),
        ("DATASET.IMBALANCE_ORDER", "size", "label, random, frequency"),
    ],
)
@pytest.mark.parametrize("copier", [lambda c: c, lambda c: c.clone(), copy.deepcopy])
def test_values_out_of_range_are_refused_when_frozen(key, value, allowed, copier):
    cfg = get_cfg_default()
    cfg.merge_from_list([key, value])
    with pytest.raises(NPTError, match=rf"^{key} is .*must be .*{allowed}"):
        copier(cfg).freeze()


def test_what_only_our_trainers_read_is_a_host_s_to_mean_otherwise():
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", "few", "TRAINER.COOP.N_CTX", 0])
    cfg.freeze()
    with pytest.raises(NPTError, match=r"TRAINER\.COOP\.N_CTX is 0"):
        config.check(cfg)


def test_unknown_keys_and_wrong_types_stay_errors():
    cfg = get_cfg_default()
    with pytest.raises((KeyError, AssertionError), match=r"TRAINER\.NPT\.W3"):
        cfg.merge_from_list(["TRAINER.NPT.W3", 1])
    with pytest.raises(ValueError, match=r"TRAINER\.NPT\.W1"):
        cfg.merge_from_list(["TRAINER.NPT.W1", "much"])
    with pytest.raises(KeyError, match=r"TRAINER\.NPT\.W3"):
        cfg.merge_from_other_cfg(CN({"TRAINER": {"NPT": {"W3": 1.0}}}))


def test_a_host_s_own_extend_cfg_works_as_it_does_without_us():
    cfg = get_cfg_default()
    cfg.TRAINER.COCOOP = CN()
    cfg.TRAINER.COCOOP.N_CTX = 4
    cfg.TRAINER.PROMPTSRC = CN()
    cfg.TRAINER.PROMPTSRC.N_CTX_VISION = 4
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_other_cfg(CN({"TRAINER": {"PROMPTSRC": {"N_CTX_VISION": 2}}}))
    cfg.merge_from_list(["TRAINER.COCOOP.N_CTX", "8", "DATASET.SUBSAMPLE_CLASSES", "new"])
    cfg.freeze()
    found = cfg.TRAINER.PROMPTSRC.N_CTX_VISION, cfg.TRAINER.COCOOP.N_CTX
    assert (*found, cfg.DATASET.SUBSAMPLE_CLASSES) == (2, 8, "new")
    with pytest.raises(AttributeError):
        cfg.TRAINER.NPT.W1 = 2.0


def test_a_node_that_a_host_put_in_place_of_ours_is_checked_too():
    cfg = get_cfg_default()
    cfg.TRAINER.NPT = CN({"W1": -1.0})
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.W1 is -1"):
        cfg.freeze()
    cfg.TRAINER.NPT.W1 = 1.0
    cfg.freeze()  # what a trainer needs beyond this is the trainer's to ask for
    with pytest.raises(NPTError, match=r"no key TRAINER\.NPT\.W2"):
        config.check(cfg, required="TRAINER.NPT")


def test_plain_trees_of_a_host_can_be_checked():
    cfg = CN({"TRAINER": {"NPT": {"W1": 1, "W2": 0.8, "E_W": 1.0, "E_H": 1.0, "REDUCTION": "x"}}})
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.REDUCTION is 'x'"):
        config.check(cfg)
