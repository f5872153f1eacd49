"""The config keys: there for any host, mergeable as yacs trees are, and checked when frozen."""

import copy

import pytest
from yacs.config import CfgNode as CN

import npt  # noqa: F401  lets dassl be imported
from dassl.config import defaults as engine_defaults
from dassl.config import get_cfg_default
from npt import config
from npt.errors import NPTError
from npt.flags import parse_args, setup_cfg


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
    with pytest.raises(NPTError, match=r"DATASET\.SUBSAMPLE_CLASSES is 'few'"):
        config.check(cfg)
    cfg.defrost()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    with pytest.raises(NPTError, match=r"TRAINER\.COOP\.N_CTX is 0"):
        config.check(cfg)
    config.check(cfg, keys=config.keys_of_method("MAPLE"))  # another method's node is not read


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
    with pytest.raises(NPTError, match=r"no key TRAINER\.NPT\.\w+; set it to"):
        config.check(cfg, required="TRAINER.NPT")


def test_plain_trees_of_a_host_can_be_checked():
    cfg = CN({"TRAINER": {"NPT": {"W1": 1, "W2": 0.8, "E_W": 1.0, "E_H": 1.0, "REDUCTION": "x"}}})
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.REDUCTION is 'x'"):
        config.check(cfg)


# --------------------------------------------------------------------------- files, flags and pairs
def setup(*argv: str):
    return setup_cfg(parse_args(list(argv)))


def test_later_sources_win(tmp_path):
    data, trainer = tmp_path / "data.yaml", tmp_path / "trainer.yaml"
    data.write_text("DATASET: {NAME: MiniFlowers, NUM_SHOTS: 1}\nOPTIM: {LR: 1, MAX_EPOCH: 3}\n")
    trainer.write_text("OPTIM: {LR: 2, STEPSIZE: [7]}\nSEED: 5\nINPUT: {SIZE: [32, 32]}\n")
    files = ["--dataset-config-file", str(data), "--config-file", str(trainer)]
    cfg = setup(*files, "--trainer", "CoOp", "OPTIM.LR", "3", "DATASET.NUM_SHOTS", "4")
    assert cfg.OPTIM.LR == 3.0 and isinstance(cfg.OPTIM.LR, float)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.STEPSIZE, cfg.DATASET.NUM_SHOTS) == (3, (7,), 4)
    assert (cfg.SEED, cfg.INPUT.SIZE, cfg.TRAINER.NAME) == (5, (32, 32), "CoOp")
    with pytest.raises(AttributeError):
        cfg.SEED = 1  # frozen
    assert setup(*files, "--trainer", "CoOp", "--seed", "0").SEED == 0


def test_flags_reach_their_keys():
    flags = """
        --root /data  --output-dir out  --resume old  --seed 7  --source-domains a b
        --target-domains c  --transforms normalize  --backbone tiny  --head mlp
        --trainer CoOp  DATASET.NAME Any
    """
    cfg = setup(*flags.split())
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED) == ("/data", "out", "old", 7)
    assert tuple(cfg.DATASET.SOURCE_DOMAINS) == ("a", "b")
    assert tuple(cfg.DATASET.TARGET_DOMAINS) == ("c",)
    assert tuple(cfg.INPUT.TRANSFORMS) == ("normalize",)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("tiny", "mlp")


def test_text_stays_text():
    cfg = setup("--trainer", "CoOp", "DATASET.NAME", "16", "TRAINER.COOP.CTX_INIT", "a photo of a")
    assert (cfg.DATASET.NAME, cfg.TRAINER.COOP.CTX_INIT) == ("16", "a photo of a")


def test_installed_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = config.find_config("configs/trainers/MaPLe/tiny.yaml")
    assert installed.is_file()
    assert config.find_config("trainers/MaPLe/tiny.yaml") == installed
    own = tmp_path / "configs" / "trainers" / "MaPLe" / "tiny.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 1\n")
    assert config.find_config("configs/trainers/MaPLe/tiny.yaml").resolve() == own


@pytest.mark.parametrize(
    "pairs, words",
    [
        (["TRAINER.NPT.W3", "1"], ["TRAINER.NPT.W3", "did you mean TRAINER.NPT.W"]),
        (["OPTIM.EPOCHS", "1"], ["OPTIM.EPOCHS"]),
        (["NUM_SHOTS", "1"], ["DATASET.NUM_SHOTS"]),
        (["OPTIM.LR.X", "1"], ["OPTIM.LR.X"]),
        (["OPTIM", "1"], ["OPTIM", "section"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "a number", "fast"]),
        (["OPTIM.MAX_EPOCH", "1.5"], ["OPTIM.MAX_EPOCH", "a whole number", "1.5"]),
        (["USE_CUDA", "1"], ["USE_CUDA", "True or False"]),
        (["INPUT.SIZE", "32"], ["INPUT.SIZE", "a list"]),
        (["OPTIM.LR"], ["OPTIM.LR", "no value"]),
        (["OPTIM.LR", "1", "--seed", "1"], ["--seed", "before"]),
        (["TRAINER.NPT.W1", "-1"], ["TRAINER.NPT.W1"]),
        (["DATASET.IMBALANCE_RATIO", "2"], ["DATASET.IMBALANCE_RATIO"]),
    ],
)
def test_a_wrong_pair_is_named(pairs, words):
    with pytest.raises(NPTError) as error:
        setup("--trainer", "CoOp", "DATASET.NAME", "Any", *pairs)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "content, words",
    [
        ("OPTIM: {RL: 1}", ["OPTIM.RL", "did you mean OPTIM.LR"]),
        ("OPTIM: 3", ["OPTIM", "section"]),
        ("OPTIM: {LR: [1]}", ["OPTIM.LR", "a number"]),
        ("OPTIM: {LR: 1", ["not valid yaml"]),
        ("- 1", ["no config keys"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    file = tmp_path / "some.yaml"
    file.write_text(content)
    with pytest.raises(NPTError) as error:
        setup("--trainer", "CoOp", "--config-file", str(file), "DATASET.NAME", "Any")
    assert all(word in str(error.value) for word in [*words, "some.yaml"]), error.value
