"""Which `dassl` an import finds, and the doctor that says so. Each case in its own process."""

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from npt import engine
from npt.engine import EMBEDDED, broken_on_this_torch
from npt.engine.__main__ import Fault, check_clip

NPT = EMBEDDED.parent.parent

# npt.engine alone, without the rest of `import npt`, so that nothing else imports dassl first.
ALONE = f"""
import sys, types, warnings
npt = types.ModuleType("npt")
npt.__path__ = [{str(NPT)!r}]
sys.modules["npt"] = npt
from npt import engine
from npt.errors import NPTError
"""
SHOW = """
import dassl
found = engine.describe()
print(found.name, found.version, "torch" in sys.modules)
"""


def run(code: str, *path: Path, cwd: Path | None = None, **environment: str):
    """The process's output; PYTHONPATH is `path`, NPT_ENGINE unset unless given."""
    env = {k: v for k, v in os.environ.items() if k not in ("NPT_ENGINE", "PYTHONPATH")}
    env.update(PYTHONPATH=os.pathsep.join(map(str, path)), **environment)
    return subprocess.run(
        [sys.executable, "-c", ALONE + code], cwd=cwd, env=env, capture_output=True, text=True
    )


def show(*path: Path, before: str = "", **environment: str) -> list[str]:
    result = run(before + "engine.activate()\nengine.activate()" + SHOW, *path, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def error(*path: Path, before: str = "", **environment: str) -> str:
    code = before + "try:\n    engine.activate()\nexcept NPTError as e:\n    print(e)"
    result = run(code, *path, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


UPSTREAM = """
import torch
from torch.optim.lr_scheduler import _LRScheduler

class _BaseWarmupScheduler({base}):
    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
        self.successor = successor
        super().__init__(optimizer, last_epoch{verbose})

class ConstantWarmupScheduler(_BaseWarmupScheduler):
    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False):
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)
"""


def site(folder: Path, verbose: str = "", base: str = "_LRScheduler") -> Path:
    """A folder with an installed Dassl: as far as finding and judging it goes."""
    package = folder / "dassl"
    (package / "optim").mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.6.3"\n')
    text = UPSTREAM.format(base=base, verbose=verbose)
    (package / "optim" / "lr_scheduler.py").write_text(text)
    return folder


@pytest.fixture
def installed(tmp_path) -> Path:
    return site(tmp_path / "site")


def test_unset(installed, tmp_path):
    version = "0.6.3+embedded"
    assert show() == ["embedded", version, "False"]  # and torch is not even imported
    assert show(installed) == ["installed", "0.6.3", "False"]
    # our own folder on PYTHONPATH does not count as an installation
    assert show(EMBEDDED, installed) == ["installed", "0.6.3", "False"]
    assert show(EMBEDDED) == ["embedded", version, "False"]
    # nor does a folder that only has the name, such as a half-deleted clone
    (tmp_path / "empty" / "dassl").mkdir(parents=True)
    assert show(tmp_path / "empty") == ["embedded", version, "False"]


def test_embedded_wins_when_asked_for(installed):
    assert show(installed, NPT_ENGINE="embedded")[0] == "embedded"


def test_installed_when_asked_for(installed):
    assert show(installed, NPT_ENGINE="installed")[0] == "installed"
    message = error(NPT_ENGINE="installed")
    assert "pip install numpy first" in message
    assert "--no-build-isolation git+https://github.com/KaiyangZhou/Dassl.pytorch" in message
    assert "git clone" in message
    # ours on the path is not it
    assert "no Dassl is installed" in error(EMBEDDED, NPT_ENGINE="installed")


def test_other_values(installed):
    assert re.search(r'NPT_ENGINE is "mine".*embedded or installed', error(NPT_ENGINE="mine"))
    assert show(installed, NPT_ENGINE=" ")[0] == "installed"


def test_imported_before(installed):
    before = "import dassl\n"
    assert show(installed, before=before)[0] == "installed"
    assert show(installed, before=before, NPT_ENGINE="installed")[0] == "installed"
    message = error(installed, before=before, NPT_ENGINE="embedded")
    assert str(installed / "dassl") in message
    assert "before the first import of dassl" in message
    assert show(EMBEDDED, before=before)[0] == "embedded"
    assert "already" in error(EMBEDDED, before=before, NPT_ENGINE="installed")


def test_sys_path_is_left_tidy(installed):
    code = "engine.activate(); engine.activate()\nprint([p for p in sys.path if 'embedded' in p])"
    assert run(code).stdout.strip() == str([str(EMBEDDED)])
    assert run(code, installed).stdout.strip() == "[]"


@pytest.mark.parametrize("before", ["", "import dassl\n"])
def test_warns_of_a_dassl_that_cannot_work(tmp_path, before):
    folder = site(tmp_path / "old", verbose=", verbose")
    taken = not broken_on_this_torch(folder / "dassl")
    code = before + "engine.activate(); engine.activate()"
    warned = run(code, folder).stderr
    if taken:  # a torch of the years before
        assert warned == ""
        return
    lines = [line for line in warned.splitlines() if "Warning: " in line]
    assert len(lines) == 1
    assert str(folder / "dassl") in lines[0]
    assert "NPT_ENGINE=embedded" in lines[0]
    assert (
        run(code if not before else "engine.activate()", folder, NPT_ENGINE="embedded").stderr == ""
    )


@pytest.mark.parametrize("base", ["_LRScheduler", "torch.optim.lr_scheduler.LRScheduler"])
def test_how_it_is_judged(tmp_path, base, monkeypatch):
    from torch.optim import lr_scheduler

    class Without:
        def __init__(self, optimizer, last_epoch=-1):
            pass

    class With:
        def __init__(self, optimizer, last_epoch=-1, verbose=False):
            pass

    old = site(tmp_path / "old", ", verbose", base) / "dassl"
    mended = site(tmp_path / "mended", "", base) / "dassl"
    monkeypatch.setattr(lr_scheduler, "LRScheduler", Without)
    assert broken_on_this_torch(old)
    assert not broken_on_this_torch(mended)  # though its subclasses still hand verbose around
    assert not broken_on_this_torch(tmp_path / "nothing")
    monkeypatch.setattr(lr_scheduler, "LRScheduler", With)
    assert not broken_on_this_torch(old)


@pytest.mark.parametrize(
    ("call", "outdated"),
    [("torch.load(fpath)", True), ("torch.load(fpath, weights_only=False)", False)],
)
def test_how_loading_is_judged(tmp_path, call, outdated):
    import torch

    folder = site(tmp_path / "site") / "dassl"
    (folder / "utils").mkdir()
    (folder / "utils" / "torchtools.py").write_text(f"def load(fpath):\n    return {call}\n")
    strict = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    assert broken_on_this_torch(folder) == ("checkpoints" if outdated and strict else "")


def test_the_embedded_engine_is_a_package_of_its_own(tmp_path):
    """It works from a copy, away from npt, and mentions npt nowhere."""
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "dassl")
    code = "import sys, dassl.engine, dassl.evaluation; print('npt' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
    for file in (EMBEDDED / "dassl").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) npt\b", file.read_text(), re.MULTILINE), file


def test_describe_here():
    found = engine.describe()
    assert found == ("embedded", "0.6.3+embedded", str(EMBEDDED / "dassl"))


# ------------------------------------------------------------------------------------- doctor


def test_doctor():
    import torch

    pytest.importorskip("clip")
    env = {k: v for k, v in os.environ.items() if k != "NPT_ENGINE"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "npt.engine"],
        cwd=NPT.parent,
        env=env,
        capture_output=True,
        text=True,
    )
    lines = {k: v for k, _, v in (x.partition(": ") for x in result.stdout.splitlines())}
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(lines)[:5] == ["engine", "torch", "torchvision", "clip", "device"]
    assert lines["engine"] == f"embedded dassl 0.6.3+embedded at {EMBEDDED / 'dassl'}: fine"
    assert lines["torch"].startswith(f"torch {torch.__version__} at ")
    assert re.match(r"clip from [\w-]+ [\d.]+ at .*: fine", lines["clip"])
    assert "Everything is fine." in result.stdout


def test_doctor_reports_an_engine_that_cannot_be_had():
    env = {**os.environ, "NPT_ENGINE": "elsewhere"}
    command = [sys.executable, "-W", "ignore", "-m", "npt.engine"]
    result = subprocess.run(command, cwd=NPT.parent, env=env, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "engine: NOT FINE" in result.stdout and "NPT_ENGINE" in result.stdout


def test_doctor_finds_a_broken_clip(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clip", raising=False)
    sentence = r"clip cannot be imported \(ModuleNotFoundError.*setuptools<81"
    with pytest.raises(Fault, match=sentence):
        check_clip()


def test_doctor_finds_another_clip(monkeypatch, tmp_path):
    other = types.ModuleType("clip")
    other.__file__ = str(tmp_path / "clip" / "__init__.py")
    monkeypatch.setitem(sys.modules, "clip", other)
    with pytest.raises(Fault, match=r"is not OpenAI's CLIP.*clip-anytorch"):
        check_clip()


def test_doctor_reports_every_part(monkeypatch, capsys):
    """Whatever fails, the other lines are still printed."""
    from npt.engine import __main__ as module

    real = module.importlib.import_module

    def broken(name, *rest):
        if name in ("clip", "torchvision", "dassl.engine"):
            raise RuntimeError(f"no {name}\n today")
        return real(name, *rest)

    monkeypatch.setattr(module.importlib, "import_module", broken)
    assert module.main() == 1
    out = capsys.readouterr().out
    assert out.count("NOT FINE") == 3
    assert "torchvision cannot be imported (RuntimeError: no torchvision today): install" in out
    assert len(out.splitlines()) == 6
