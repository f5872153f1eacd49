"""What the host's code reads as the trainer's name, and what logs and records call the trainer."""

import copy
import pickle

import pytest
import torch
import yaml
from small_host import Host
from yacs.config import CfgNode as CN

from dassl import config as of_engine
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_dataset
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils.errors import InvalidValue
from npt import identity
from npt.errors import NPTError
from npt.names import trainer_name
from npt.trainer import NPTMixin

OFF = ("TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)


def registered(name):
    if name not in TRAINER_REGISTRY.own_names():
        TRAINER_REGISTRY.register(type(name, (Host,), {}))
    return name


@pytest.fixture
def cfg():
    registered("Namesake")
    return get_cfg_default()


# ---- a host that branches on the name, in its settings, its data and its model


def test_without_weights_it_is_the_host_s_run_with_the_host_s_data(trained):
    alone, wrapped = trained("Named"), trained("NamedNPT", *OFF)
    assert alone.accuracy == wrapped.accuracy
    assert alone.weights.keys() == wrapped.weights.keys()
    assert all(torch.equal(wrapped.weights[key], x) for key, x in alone.weights.items())
    assert wrapped.result["train_counts"] == [2] * 7


def test_logs_and_records_have_the_name_that_was_asked_for(trained):
    run = trained("NamedNPT", *OFF)
    assert "Loading trainer: NamedNPT\n" in run.done.stdout
    assert "  NAME: NamedNPT\n" in run.done.stdout  # in the config that train.py prints
    assert "Test of Named\n" in run.done.stdout
    assert run.result["trainer"] == run.result["config"]["TRAINER"]["NAME"] == "NamedNPT"


def test_a_checkpoint_is_tested_under_both_names(host, trained, tmp_path):
    made = trained("NamedNPT", *OFF)
    for name in ("Named", "NamedNPT"):
        flags = ("--eval-only", "--model-dir", made.output, "--load-epoch", 2)
        done = host(name, tmp_path / name, flags=flags)
        assert done.returncode == 0, done.stderr
        assert f"* accuracy: {made.accuracy}%" in done.stdout


# ---- the name in a config


@pytest.mark.parametrize("way", ["set", "item", "list", "file", "other", "base"])
def test_host_code_reads_its_own_name_however_it_was_given(cfg, way, tmp_path):
    name = "NamesakeNPT"
    if way == "set":
        cfg.TRAINER.NAME = name
    elif way == "item":
        cfg["TRAINER"]["NAME"] = name
    elif way == "list":
        cfg.merge_from_list(["TRAINER.NAME", name])
    elif way == "file":
        (tmp_path / "some.yaml").write_text(f"TRAINER:\n  NAME: {name}\n")
        cfg.merge_from_file(str(tmp_path / "some.yaml"))
    elif way == "other":
        cfg.merge_from_other_cfg(CN({"TRAINER": {"NAME": name}}))
    else:
        cfg.merge_from_list(["TRAINER.NAME", "NPT", "TRAINER.NPT.BASE", "Namesake"])
        cfg.freeze()
        name = "NPT"
    assert cfg.TRAINER.NAME == "Namesake" and trainer_name(cfg) == name


def test_copies_and_dumps_keep_the_name_that_was_asked_for(cfg, tmp_path):
    cfg.TRAINER.NAME = "NamesakeNPT"
    other = get_cfg_default()
    other.merge_from_other_cfg(cfg)
    file = tmp_path / "dump.yaml"
    file.write_text(cfg.dump())
    again = get_cfg_default()
    again.merge_from_file(str(file))
    for found in (cfg.clone(), copy.copy(cfg), pickle.loads(pickle.dumps(cfg)), other, again):
        assert found.TRAINER.NAME == "Namesake" and trainer_name(found) == "NamesakeNPT"
    assert yaml.safe_load(file.read_text())["TRAINER"]["NAME"] == "NamesakeNPT"
    assert "NAME: NamesakeNPT" in str(cfg)
    assert identity.plain(cfg)["TRAINER"]["NAME"] == "NamesakeNPT"


def test_another_name_is_another_trainer(cfg):
    cfg.TRAINER.NAME = "NamesakeNPT"
    cfg.TRAINER.NAME = "Namesake"
    assert trainer_name(cfg) == "Namesake"
    assert type(build_trainer(cfg)) is TRAINER_REGISTRY.get("Namesake")


def test_npt_s_own_trainers_and_unknown_ones_keep_their_names(cfg):
    for name in ("MaPLeNPT", "NobodyNPT", "NPT", ""):
        cfg.TRAINER.NAME = name
        assert cfg.TRAINER.NAME == trainer_name(cfg) == name


def test_a_trainer_that_the_host_itself_calls_so_is_its_own(cfg):
    registered("TheirsNPT"), registered("Theirs")
    cfg.TRAINER.NAME = "TheirsNPT"
    assert cfg.TRAINER.NAME == "TheirsNPT"
    assert not issubclass(TRAINER_REGISTRY.get("TheirsNPT"), NPTMixin)


def test_a_trainer_that_is_registered_after_the_config_is_frozen(cfg):
    cfg.TRAINER.NAME = "ComesLateNPT"
    cfg.freeze()
    registered("ComesLate")
    trainer = build_trainer(cfg)
    assert isinstance(trainer, NPTMixin)
    assert trainer.cfg.TRAINER.NAME == "ComesLate" and trainer_name(trainer.cfg) == "ComesLateNPT"
    assert trainer.cfg.is_frozen()


def test_the_engine_builds_what_was_asked_for(cfg, capsys):
    cfg.TRAINER.NAME = "NamesakeNPT"
    assert type(build_trainer(cfg)).__name__ == "NamesakeNPT"
    assert "Loading trainer: NamesakeNPT" in capsys.readouterr().out


def test_a_host_that_builds_its_own_trainer_by_the_name_it_reads_is_told(cfg):
    """The name that it reads is its own, so NPT would have no part in the run."""
    cfg.TRAINER.NAME = "NamesakeNPT"
    with pytest.raises(NPTError, match=r"NamesakeNPT is asked for, but Namesake.*build_trainer"):
        build_dataset(cfg)  # as its plain trainer does
    build_trainer(cfg)
    with pytest.raises(InvalidValue, match=r"DATASET\.NAME"):
        build_dataset(cfg)  # it goes on: no data set is named here


def test_a_host_that_writes_the_name_back_is_told(cfg, monkeypatch):
    """Without that name on the command line, the plain trainer may be meant: a warning."""
    registered("Writes")
    cfg.TRAINER.NAME = "WritesNPT"
    cfg.TRAINER.NAME = cfg.TRAINER.NAME
    with pytest.warns(UserWarning, match="is asked for"), pytest.raises(InvalidValue):
        build_dataset(cfg)
    for words in (["--trainer", "WritesNPT"], ["--trainer=WritesNPT"]):
        monkeypatch.setattr("sys.argv", ["train.py", *words])
        with pytest.raises(NPTError, match=r"WritesNPT is asked for, but Writes is built"):
            build_dataset(cfg)
    other = get_cfg_default()
    other.TRAINER.NAME = "WritesNPT"
    build_trainer(other)  # from now on, Writes is another trainer of the process
    with pytest.raises(InvalidValue):
        build_dataset(cfg)


def test_functions_imported_before_npt_are_replaced_too(python):
    """As where `import npt` is the last import of a train.py."""
    code = (
        "import sys; sys.path.insert(0, EMBEDDED)\n"
        "from dassl.config import clean_cfg, get_cfg_default\n"
        "from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer\n"
        "@TRAINER_REGISTRY.register()\n"
        "class Early(TrainerX):\n"
        "    def __init__(self, cfg): print(type(self).__name__, cfg.TRAINER.NAME)\n"
        "import npt\n"
        "cfg = get_cfg_default()\n"
        "cfg.TRAINER.NAME = 'EarlyNPT'\n"
        "clean_cfg(cfg, 'EarlyNPT')\n"
        "print('W1' in cfg.TRAINER.NPT)\n"
        "try: build_trainer(cfg)\n"
        "except AttributeError: pass\n"  # it has no cfg
    )
    from npt.engine import EMBEDDED

    done = python("-W", "ignore", "-c", code.replace("EMBEDDED", repr(str(EMBEDDED))))
    assert "EarlyNPT Early" in done.stdout and "True" in done.stdout, done.stderr


# ---- tools that remove nodes


def test_clean_cfg_keeps_the_keys_of_npt_and_their_values(cfg):
    cfg.TRAINER.NPT.W1 = 0.7
    of_engine.clean_cfg(cfg, "CoOpNPT")
    assert cfg.TRAINER.NPT.W1 == 0.7
    assert set(cfg.TRAINER) == {"NAME", "NPT", "COOP"}


@pytest.mark.parametrize("remove", [CN.pop, CN.__delitem__])
def test_the_node_stays_whoever_removes_the_nodes_of_others(cfg, remove):
    cfg.TRAINER.NPT.W1 = 0.7
    cfg.TRAINER.NAMESAKE = CN({"PREC": "fp32"})
    cfg.TRAINER.NAME = "NamesakeNPT"
    for key in list(cfg.TRAINER):
        if key not in ("NAME", "NAMESAKENPT"):
            getattr(cfg.TRAINER, remove.__name__)(key)
    assert set(cfg.TRAINER) == {"NAME", "NPT", "NAMESAKE"} and cfg.TRAINER.NPT.W1 == 0.7


def test_a_host_with_a_node_trainer_of_its_own(cfg):
    cfg.TRAINER = CN({"NAME": "", "OTHER": CN({"X": 1})})
    cfg.TRAINER.NAME = "NamesakeNPT"
    cfg.merge_from_list(["TRAINER.NPT.W1", 0.7, "TRAINER.OTHER.X", 2])
    cfg.freeze()
    assert cfg.TRAINER.NAME == "Namesake" and trainer_name(cfg) == "NamesakeNPT"
    assert cfg.TRAINER.NPT.W1 == 0.7 and cfg.TRAINER.OTHER.X == 2
