"""The names under which the engine's registry finds NPT trainers."""

import pickle

import pytest
import torch
from small_host import D, Host, K, batches, config

import npt
from dassl.engine import TRAINER_REGISTRY
from npt.errors import NPTError
from npt.host import registry
from npt.losses import language_collapse_loss
from npt.trainer import NPTMixin


def test_the_three_names_exist_and_extending_again_changes_nothing():
    registry.extend_registry()
    names = TRAINER_REGISTRY.registered_names()
    assert {"CoCoOpNPT", "MaPLeNPT", "NPT"} <= set(names)
    assert len(names) == len(set(names))


def test_npt_wraps_the_trainer_that_base_names():
    class HostOfTests(Host):
        pass

    if "HostOfTests" not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(HostOfTests)
    cfg = config()
    cfg.TRAINER.NPT.BASE = "HostOfTests"
    trainer = TRAINER_REGISTRY.get("NPT")(cfg)
    assert isinstance(trainer, NPTMixin) and isinstance(trainer, Host)
    assert type(trainer).__name__ == "HostOfTestsNPT"
    assert trainer.forward_backward(batches()[0])["loss_mi"] > 0


def test_every_trainer_has_an_npt_name_even_if_it_is_registered_later():
    npt.register("LaterHost")  # before there is such a trainer
    for name in ("LateHost", "LaterHost"):
        assert name not in TRAINER_REGISTRY.registered_names()
        TRAINER_REGISTRY.register(type(name, (Host,), {}))
        assert f"{name}NPT" in TRAINER_REGISTRY.registered_names()
        trainer = TRAINER_REGISTRY.get(f"{name}NPT")(config())
        assert isinstance(trainer, NPTMixin) and type(trainer).__name__ == f"{name}NPT"
    with pytest.raises(KeyError):
        TRAINER_REGISTRY.get("NobodyNPT")


def test_a_registered_adapter_is_used_under_every_name_of_the_trainer():
    TRAINER_REGISTRY.register(type("OddHost", (Host,), {}))
    npt.register("OddHost", features=lambda model, batch: (None, torch.eye(K, D)))
    cfg = config()
    cfg.TRAINER.NPT.BASE = "OddHost"
    (batch,) = batches()
    for name in ("OddHostNPT", "NPT"):
        summary = TRAINER_REGISTRY.get(name)(cfg).forward_backward(batch)
        expected = language_collapse_loss(torch.eye(K, D), 1.0, "class")
        assert summary["loss_lc"] == pytest.approx(expected.item())


@pytest.mark.parametrize("base", ["", "NoSuchTrainer", "MaPLeNPT"])
def test_npt_without_a_valid_base_lists_the_trainers(base):
    cfg = config()
    cfg.TRAINER.NPT.BASE = base
    with pytest.raises(NPTError, match=r"one of .*MaPLe.*TRAINER\.NPT\.BASE"):
        TRAINER_REGISTRY.get("NPT")(cfg)


def test_npt_s_own_trainers_are_wrapped_if_the_host_has_none():
    for base in ("CoCoOp", "MaPLe"):
        cls = registry.npt_class(base)
        assert issubclass(cls, TRAINER_REGISTRY.get(base)) and cls.__name__ == f"{base}NPT"


def test_the_same_class_each_time_which_pickles_also_to_another_process(python, tmp_path):
    """A host's module is imported by the other process, and nothing else."""
    for name in ("CoCoOpNPT", "MaPLeNPT", "CoOpNPT"):
        cls = TRAINER_REGISTRY.get(name)
        assert cls is TRAINER_REGISTRY.get(name) and pickle.loads(pickle.dumps(cls)) is cls
    (tmp_path / "hosts_trainer.py").write_text(
        "import npt\nfrom dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "@TRAINER_REGISTRY.register()\nclass Foreign(TrainerX): pass\n"
    )
    (tmp_path / "main.py").write_text(
        "import multiprocessing, hosts_trainer\nfrom dassl.engine import TRAINER_REGISTRY as R\n"
        "def name(cls): return cls.__name__, cls.__mro__[3].__module__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(name, (R.get('ForeignNPT'),)))\n"
    )
    done = python("-W", "ignore", "main.py", cwd=tmp_path)
    assert done.stdout.strip().startswith("('ForeignNPT', "), done.stderr


def test_threads_may_ask_for_the_first_trainer_together(python):
    code = (
        "import npt, dassl.engine as e; from concurrent.futures import ThreadPoolExecutor as T\n"
        "with T(8) as pool: found = set(pool.map(e.TRAINER_REGISTRY.get, ['MaPLeNPT'] * 8))\n"
        "print(len(found))"
    )
    done = python("-W", "ignore", "-c", code)
    assert done.stdout.strip() == "1", done.stderr
