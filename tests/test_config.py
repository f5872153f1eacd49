"""The config keys: there for any host, mergeable as yacs trees are, and checked when frozen."""

import copy
import math
import re

import pytest
from yacs.config import CfgNode as CN

import npt  # noqa: F401  lets dassl be imported
from dassl.config import defaults as engine_defaults
from dassl.config import get_cfg_default
from dassl.utils.errors import UserError
from npt import config
from npt.engine import Engine
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
        config.check(cfg, config.PAPER_KEYS)


def test_plain_trees_of_a_host_can_be_checked():
    cfg = CN({"TRAINER": {"NPT": {"W1": 1, "W2": 0.8, "E_W": 1.0, "E_H": 1.0, "REDUCTION": "x"}}})
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.REDUCTION is 'x'"):
        config.check(cfg)


ENGINE_VALUES = [
    *(("INPUT.SIZE", value) for value in ((), None, (32, 32, 32), (2.0, 3.0), (0, 8), (True, 8))),
    *(("INPUT.RRCROP_SCALE", value) for value in ((32,), (5, 2, 2), (0.5, 0.1), (0.0, 1.0))),
    *(("INPUT.PIXEL_MEAN", value) for value in (None, [0.5], ["a", "b", "c"], [math.nan] * 3)),
    *(("INPUT.PIXEL_STD", value) for value in (None, [0, 0, 0], [0.5, 0.5, -0.5])),
    *(("INPUT.TRANSFORMS", value) for value in (None, "normalize", (1,), ((),))),
    *(("INPUT.GB_K", value) for value in (20, 0, 10**12)),
    ("INPUT.NO_TRANSFORM", 1),
    ("INPUT.CROP_PADDING", -1),
    ("INPUT.CUTOUT_LEN", -1),
    ("INPUT.RANDAUGMENT_M", 31),
    ("INPUT.COLORJITTER_H", 0.6),
    ("INPUT.INTERPOLATION", "cubic"),
    ("DATALOADER.NUM_WORKERS", -1),
    ("DATALOADER.NUM_WORKERS", 10**6),
    ("DATALOADER.K_TRANSFORMS", 0),
    ("DATALOADER.TRAIN_X.BATCH_SIZE", 10**12),
    ("DATALOADER.TRAIN_X.N_INS", 0),
    ("DATALOADER.TEST.BATCH_SIZE", 0),
    *(("OPTIM.LR", value) for value in (-0.5, 1e300, math.inf, math.nan, "fast", True, 10**400)),
    *(("OPTIM.MOMENTUM", value) for value in (-0.5, 1e300, 1.0)),
    *(("OPTIM.STEPSIZE", value) for value in ((), None, ("a",), (1.5,), (True,))),
    ("OPTIM.ADAM_BETA1", 1.0),
    ("OPTIM.WARMUP_TYPE", "sudden"),
    ("OPTIM.MAX_EPOCH", 0),
    ("OPTIM.MAX_EPOCH", 10**18),
    *(("SEED", value) for value in (None, 2**32, 1.0, 10**5000)),
    *(("TRAIN.PRINT_FREQ", value) for value in (None, 0)),
    ("TRAIN.COUNT_ITER", "all"),
    ("TEST.SPLIT", "foo"),
    ("TEST.FINAL_MODEL", "best"),
    ("MODEL.HEAD.DROPOUT", 1.5),
    ("MODEL.HEAD.HIDDEN_LAYERS", (0,)),
    ("DATASET.NAME", None),
    ("DATASET.ROOT", "a\0b"),
    ("OUTPUT_DIR", "a\udcffb"),
]


def with_value(key, value):
    cfg = get_cfg_default()
    *above, name = key.split(".")
    node = cfg
    for part in above:
        node = node[part]
    node[name] = value
    return cfg


@pytest.mark.parametrize("key, value", ENGINE_VALUES, ids=lambda x: config.shown(x)[:20])
def test_values_that_the_engine_does_not_take_are_refused_when_frozen(key, value):
    with pytest.raises(UserError, match=rf"^{re.escape(key)} is .*, but it must be ") as error:
        with_value(key, value).freeze()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "key, value",
    [
        ("SEED", 2**32 - 1),
        ("SEED", -7),
        ("OPTIM.LR", 0),
        ("OPTIM.LR", 1e38),
        ("OPTIM.STEPSIZE", 3),
        ("OPTIM.NEW_LAYERS", "head"),
        ("MODEL.HEAD.HIDDEN_LAYERS", 512),
        ("INPUT.PIXEL_MEAN", (0, 0, 0)),
        ("INPUT.SIZE", [32, 32]),
        ("INPUT.TRANSFORMS", ["of_a_host"]),
        ("OPTIM.NAME", "of_a_host"),
        ("DATALOADER.TRAIN_X.SAMPLER", "of_a_host"),
        ("OUTPUT_DIR", "\u00e9/\U0001f33c"),
    ],
)
def test_values_that_the_engine_or_a_host_of_it_takes_are_accepted(key, value):
    with_value(key, value).freeze()


def test_the_keys_of_an_installed_dassl_are_its_own(monkeypatch):
    cfg = with_value("TEST.SPLIT", "train")
    monkeypatch.setattr(config.engine, "describe", lambda: Engine("installed", "0.6.3", "/dassl"))
    cfg.freeze()
    cfg.defrost()
    cfg.DATASET.IMBALANCE_RATIO = None
    with pytest.raises(NPTError, match=r"DATASET\.IMBALANCE_RATIO is None"):
        cfg.freeze()


@pytest.mark.parametrize(
    "key, value",
    [
        ("TRAINER.NPT.W1", None),
        ("TRAINER.NPT.W2", 1e39),
        ("TRAINER.NPT.E_W", 1e300),
        ("TRAINER.NPT.E_H", True),
        ("TRAINER.NPT.BASE", 3),
        ("TRAINER.MAPLE.PROMPT_DEPTH", None),
        ("TRAINER.MAPLE.N_CTX", 10**9),
        ("TRAINER.MAPLE.CTX_INIT", None),
        ("TRAINER.MAPLE.PREC", ["fp32"]),
        ("DATASET.IMBALANCE_RATIO", None),
        ("MODEL.CLASS_CHUNK", -1),
        ("MODEL.LINEAR", "mkl"),
        ("MODEL.ACCELERATE", 1),
        ("INPUT.NO_TRANSFORM", True),
        ("DATALOADER.K_TRANSFORMS", 2),
    ],
)
def test_our_trainers_check_the_keys_that_they_read(key, value):
    with pytest.raises(NPTError, match=rf"^{re.escape(key)} is .*, but it must be "):
        config.check(with_value(key, value), keys=config.keys_of_method("MAPLE"))


# --------------------------------------------------------------------------- files, flags and pairs
def checkpointed(folder):
    """A folder with a checkpoint, of which only the names matter here."""
    (folder / "old" / "prompt_learner").mkdir(parents=True)
    (folder / "old" / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    return folder / "old"


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


def test_flags_reach_their_keys(tmp_path):
    old = str(checkpointed(tmp_path))
    flags = f"""
        --root /data  --output-dir out  --resume {old}  --seed 7  --source-domains a b
        --target-domains c  --transforms normalize  --backbone tiny  --head mlp
        --trainer CoOp  DATASET.NAME Any
    """
    cfg = setup(*flags.split())
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED) == ("/data", "out", 7)
    assert old == cfg.RESUME
    assert tuple(cfg.DATASET.SOURCE_DOMAINS) == ("a", "b")
    assert tuple(cfg.DATASET.TARGET_DOMAINS) == ("c",)
    assert tuple(cfg.INPUT.TRANSFORMS) == ("normalize",)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("tiny", "mlp")
    assert parse_args(["--overwrite"]).overwrite and not parse_args(flags.split()).overwrite


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
        (["OPTIM.LR", "None"], ["OPTIM.LR", "a number", "None"]),
        (["INPUT.SIZE", "null"], ["INPUT.SIZE", "a list", "null"]),
        (["SEED", "9" * 5000], ["SEED", "a whole number", "99..."]),
        (["SEED", "[" * 5000], ["SEED", "a whole number", "[[..."]),
        (["SEED", "-" * 9000 + "1"], ["SEED", "a whole number"]),
        (["SEED", "1" + "+1" * 4000], ["SEED", "a whole number"]),
        (["SEED", "{[]: 1}"], ["SEED", "a whole number"]),
        (["SEED", "x" * 10**6], ["SEED", "xx..."]),
        (["OPTIM.LR", "9" * 400], ["OPTIM.LR"]),
        (["INPUT.SIZE", "(" * 90 + "," + ")" * 90], ["INPUT.SIZE"]),
        (["TRAINER.COOP.CTX_INIT", "'\\ud800'"], ["TRAINER.COOP.CTX_INIT", "text in UTF-8"]),
        (["x" * 10**5, "1"], ["unknown config key xxx"]),
        (["", "1"], ["unknown config key"]),
        (["..", "1"], ["unknown config key"]),
        (["RESUME", "no/such"], ["no/such", "--resume"]),
        (["TRAINER.NPT.W1", "-1"], ["TRAINER.NPT.W1"]),
        (["DATASET.IMBALANCE_RATIO", "2"], ["DATASET.IMBALANCE_RATIO"]),
    ],
)
def test_a_wrong_pair_is_named(pairs, words):
    with pytest.raises((NPTError, UserError)) as error:
        setup("--trainer", "CoOp", "DATASET.NAME", "Any", *pairs)
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value)) < 500


def test_a_list_of_long_values_still_merges_in_a_host():
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "[" * 5000, "DATASET.ROOT", "9" * 5000])
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("[" * 5000, "9" * 5000)


@pytest.mark.parametrize("flag", ["--trainer", "--output-dir", "--config-file", "OPTIM.LR", ""])
@pytest.mark.parametrize("word", ["a\udcffb", "a\0b"])
def test_arguments_that_are_no_text_are_one_sentence(capsys, flag, word):
    with pytest.raises(SystemExit) as stop:
        parse_args([flag, word])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("error: the argument 'a\\") and "UTF-8" in lines[0]


def test_there_must_be_something_to_resume_from(tmp_path):
    def resume(folder):
        return setup("--trainer", "CoOp", "--resume", str(folder), "DATASET.NAME", "Any")

    (tmp_path / "empty" / "prompt_learner").mkdir(parents=True)
    with pytest.raises(NPTError, match=r"has no checkpoint.*--resume"):
        resume(tmp_path / "empty")
    with pytest.raises(NPTError, match=r"there is no folder.*--resume"):
        resume(tmp_path / "gone")
    resume(checkpointed(tmp_path))
    (tmp_path / "steps" / "resume").mkdir(parents=True)
    (tmp_path / "steps" / "resume" / "7").touch()
    resume(tmp_path / "steps")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    "content, words",
    [
        (BOMB, ["more than 10,000 values"]),
        (MERGES, ["more than 10,000 values"]),
        ("OPTIM: &a [*a]", ["more than 10,000 values"]),
        ("OPTIM: " + "[" * 1500 + "]" * 1500, ["nested too deep"]),
        ("- " * 3000, ["nested too deep"]),
        ("x" * 100_001, ["larger than 100,000 bytes"]),
        ("SEED: 1\0", ["not valid yaml"]),
        ('DATASET: {NAME: "a\\0b"}', ["DATASET.NAME", "text in UTF-8"]),
        ('DATASET: {NAME: "\\ud800"}', ["DATASET.NAME", "text in UTF-8"]),
        ("1: 2", ["unknown config key 1"]),
        ("? [1]\n: 2", ["not valid yaml"]),
        ("~: 2", ["unknown config key None"]),
        ("SEED: 2020-01-01", ["SEED", "a whole number", "2020"]),
        ("SEED: 2020-13-01", ["not valid yaml", "month"]),
        ("SEED: !!bool maybe", ["not valid yaml"]),
        ("SEED: !!timestamp x", ["not valid yaml"]),
        ("SEED: !!python/object/apply:os.getpid []", ["not valid yaml"]),
        ("SEED: " + "9" * 5000, ["not valid yaml"]),
        ("OPTIM: {LR: .nan}", ["OPTIM.LR is nan"]),
        ("OPTIM: {LR: null}", ["OPTIM.LR", "a number", "None"]),
        ("SEED: 1\nOPTIM: {LR: 1}\nSEED: 2", ["the key SEED twice", "line 3"]),
        ("OPTIM:\n  LR: 1\n  LR: 1", ["the key LR twice", "line 3"]),
        ("OPTIM: {RL: 1}", ["OPTIM.RL", "did you mean OPTIM.LR"]),
        ("OPTIM: 3", ["OPTIM", "section"]),
        ("OPTIM: {LR: [1]}", ["OPTIM.LR", "a number"]),
        ("OPTIM: {LR: 1", ["not valid yaml"]),
        ("- 1", ["no config keys"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    pairs = [] if "NAME" in content else ["DATASET.NAME", "Any"]
    file = tmp_path / "some.yaml"
    file.write_text(content)
    with pytest.raises((NPTError, UserError)) as error:
        setup("--trainer", "CoOp", "--config-file", str(file), *pairs)
    where = [] if "must be" in str(error.value) else ["some.yaml"]  # not of a frozen value
    assert all(word in str(error.value) for word in [*words, *where]), error.value


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(NPTError, match=r"is a folder: name a config file"):
        config.find_config(tmp_path)


def test_a_file_may_refer_to_its_own_values(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("INPUT: &a {SIZE: &s [32, 32]}\nOPTIM: {STEPSIZE: *s}\n")
    cfg = setup("--trainer", "CoOp", "--config-file", str(file), "DATASET.NAME", "Any")
    assert cfg.INPUT.SIZE == cfg.OPTIM.STEPSIZE == (32, 32)


@pytest.mark.parametrize(
    "pairs, other",
    [
        (["TRAINER.NPT.EFFECTIVE_BETA", 0.9], "TRAINER.NPT.CLASS_WEIGHT effective"),
        (["TRAINER.NPT.CLUSTER_SIZE", 4], r"TRAINER\.NPT\.W_CLUSTER a finite number, above 0"),
        (["DATALOADER.TRAIN_X.BALANCE_POWER", 0.5], "SAMPLER ClassBalancedSampler"),
    ],
)
def test_a_key_that_acts_only_with_another_is_named_without_it(pairs, other):
    cfg = get_cfg_default()
    cfg.merge_from_list(pairs)
    with pytest.warns(UserWarning, match=f"{pairs[0]} {pairs[1]} has no effect.*{other}"):
        cfg.freeze()


def test_a_key_beside_the_key_that_it_acts_with_is_silent(recwarn):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["TRAINER.NPT.EFFECTIVE_BETA", 0.9, "TRAINER.NPT.CLASS_WEIGHT", "effective"]
    )
    cfg.merge_from_list(["TRAINER.NPT.ANCHOR", "squared", "TRAINER.NPT.W_ANCHOR", 0.1])
    cfg.freeze()
    assert not [w for w in recwarn if "no effect" in str(w.message)]
