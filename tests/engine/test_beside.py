"""A Dassl that a host brings along: where it is found, and its schedulers on current torch."""

import shutil
import textwrap
from pathlib import Path

import pytest

from npt.engine import EMBEDDED

# Warm-up as Dassl 0.6 has it: `verbose` goes to torch, and the state holds the successor.
SCHEDULERS = """
import torch
from torch.optim.lr_scheduler import _LRScheduler


class WarmUp(_LRScheduler):
    def __init__(self, optimizer, successor, epochs, last_epoch=-1, verbose=False):
        self.successor, self.epochs = successor, epochs
        super().__init__(optimizer, last_epoch, verbose)

    def get_lr(self):
        late = self.last_epoch >= self.epochs
        return self.successor.get_last_lr() if late else [1e-5 for _ in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch >= self.epochs:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)


def build_lr_scheduler(optimizer, cfg):
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))
    return WarmUp(optimizer, cosine, cfg.WARMUP_EPOCH)
"""


@pytest.fixture
def fork(tmp_path):
    """A repository with a program and, beside it, a fork of the engine with a name of its own."""
    package = tmp_path / "host" / "Dassl.fork.pytorch" / "dassl"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(EMBEDDED / "dassl", package, ignore=ignored)
    with (package / "engine" / "__init__.py").open("a") as file:
        file.write("\nONLY_HERE = 'the fork'\n")
    program = tmp_path / "host" / "program"
    program.mkdir()
    (program / "train.py").write_text("import dassl.engine as e\nprint(vars(e).get('ONLY_HERE'))\n")
    return package


def started(python, fork: Path, *more: object, **environment: str):
    program = fork.parents[1] / "program" / "train.py"
    return python("-m", "npt.run", program, *more, cwd="/", **environment)


def test_the_fork_beside_the_program_is_the_engine(python, fork):
    done = started(python, fork)
    assert done.stdout == "the fork\n", done.stderr
    assert f'in "{fork.parent}"' in done.stderr and "NPT_ENGINE=embedded" in done.stderr
    assert started(python, fork, NPT_ENGINE="installed").stdout == "the fork\n"
    assert started(python, fork, NPT_ENGINE="embedded").stdout == "None\n"


def test_the_fork_in_the_program_s_own_folder(python, fork, tmp_path):
    shutil.copy(fork.parents[1] / "program" / "train.py", fork.parents[1])
    done = python("-m", "npt.run", fork.parents[1] / "train.py", cwd="/")
    assert done.stdout == "the fork\n", done.stderr


def test_a_dassl_on_the_search_path_wins(python, fork, tmp_path):
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "site" / "dassl")
    done = started(python, fork, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout == "None\n" and "brings" not in done.stderr


def test_what_lies_beside_a_whole_repository_is_not_the_host_s(python, fork):
    (fork.parents[1] / "program" / ".git").mkdir()
    done = started(python, fork)
    assert done.stdout == "None\n" and done.stderr == ""


def test_several_forks_end_with_one_sentence(python, fork):
    shutil.copytree(fork.parent, fork.parents[1] / "dassl-mine")
    done = started(python, fork)
    assert done.returncode == 2 and "brings several engines" in done.stderr
    assert str(fork.parents[1] / "dassl-mine") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["__init__.py", "data/__init__.py"])
def test_a_fork_that_cannot_be_imported_is_replaced_with_a_warning(python, fork, file):
    text = (fork / file).read_text()
    (fork / file).write_text(f"{text}\nimport a_package_nobody_has\n")
    done = started(python, fork)
    assert done.stdout == "None\n", done.stderr
    assert "a_package_nobody_has" in done.stderr and "embedded in npt is used" in done.stderr


def test_npt_s_own_programs_do_not_look_for_forks(python, fork, tmp_path):
    done = python("-m", "npt", "doctor", cwd=fork.parents[1])
    assert "embedded dassl" in done.stdout and "of the host" not in done.stderr


# ---- repaired schedulers

RATES = textwrap.dedent(
    """
    import sys, warnings
    import torch
    import npt
    from dassl.config import get_cfg_default
    from dassl.optim import build_lr_scheduler
    warnings.simplefilter("ignore")

    cfg = get_cfg_default().OPTIM
    cfg.LR_SCHEDULER, cfg.MAX_EPOCH, cfg.LR = "cosine", 6, 0.1
    cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE, cfg.WARMUP_CONS_LR = 1, "constant", 1e-5

    def made():
        optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.LR)
        return optim, build_lr_scheduler(optim, cfg)

    def rates(optim, sched, n):
        found = []
        for _ in range(n):
            found.append(optim.param_groups[0]["lr"])
            optim.step(), sched.step()
        return found

    optim, sched = made()
    first = rates(optim, sched, 3)
    torch.save([optim.state_dict(), sched.state_dict()], sys.argv[1])
    rest = rates(optim, sched, 3)
    states = torch.load(sys.argv[1], weights_only=True)
    optim, sched = made()
    for part, state in zip((optim, sched), states, strict=True):
        part.load_state_dict(state)
    print([f"{x:.9f}" for x in first + rest], rest == rates(optim, sched, 3))
    """
)


def test_its_warm_up_runs_is_saved_and_resumes_as_the_embedded_engine_s(python, fork, tmp_path):
    (fork / "optim" / "lr_scheduler.py").write_text(SCHEDULERS)
    (fork.parents[1] / "program" / "train.py").write_text(RATES)
    done = started(python, fork, tmp_path / "state.pt")
    embedded = started(python, fork, tmp_path / "state.pt", NPT_ENGINE="embedded")
    assert done.returncode == 0, done.stderr
    assert done.stdout == embedded.stdout and done.stdout.strip().endswith("True")
