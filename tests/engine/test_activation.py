"""Which `dassl` an import finds, and the doctor's report. Each case runs in a new process."""

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
from npt.engine.__main__ import Fault, check_clip, main

NPT = EMBEDDED.parent.parent
IGNORE_WARNINGS = ("-W", "ignore")

# npt.engine alone, without npt/__init__.py, which would register the import hook.
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


def start(*args: object, path: tuple[Path, ...] = (), cwd: Path = NPT.parent, **environment: str):
    """Run Python with these arguments; NPT_ENGINE and PYTHONPATH are only what is given here."""
    env = {k: v for k, v in os.environ.items() if k not in ("NPT_ENGINE", "PYTHONPATH")}
    env.update(PYTHONPATH=os.pathsep.join(map(str, path)), **environment)
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def run(code: str, *path: Path, **environment: str):
    return start("-c", ALONE + code, path=path, **environment)


def show(*path: Path, before: str = "", **environment: str) -> list[str]:
    """Name and version of the engine, and whether torch was imported."""
    result = run(before + "engine.activate()\nengine.activate()" + SHOW, *path, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def error(*path: Path, before: str = "", **environment: str) -> str:
    """The message of the NPTError."""
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
    """A folder with the files of an installed Dassl that npt.engine looks at."""
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
    assert show() == ["embedded", version, "False"]  # torch is not imported
    assert show(installed) == ["installed", "0.6.3", "False"]
    # The embedded engine on PYTHONPATH does not count as installed.
    assert show(EMBEDDED, installed) == ["installed", "0.6.3", "False"]
    assert show(EMBEDDED) == ["embedded", version, "False"]
    # Nor does a folder named dassl without a package in it, such as a partly deleted clone.
    (tmp_path / "empty" / "dassl").mkdir(parents=True)
    assert show(tmp_path / "empty") == ["embedded", version, "False"]


def test_embedded_is_selected(installed):
    assert show(installed, NPT_ENGINE="embedded")[0] == "embedded"


def test_installed_is_selected(installed):
    assert show(installed, NPT_ENGINE="installed")[0] == "installed"
    message = error(NPT_ENGINE="installed")
    assert "pip install numpy first" in message
    assert "--no-build-isolation git+https://github.com/KaiyangZhou/Dassl.pytorch" in message
    assert "git clone" in message
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


def test_our_folder_is_on_sys_path_once(installed):
    code = "engine.activate(); engine.activate()\nprint([p for p in sys.path if 'embedded' in p])"
    assert run(code).stdout.strip() == str([str(EMBEDDED)])
    assert run(code, installed).stdout.strip() == "[]"


@pytest.mark.parametrize("before", ["", "import dassl\n"])
def test_warns_of_a_dassl_that_does_not_work(tmp_path, before):
    folder = site(tmp_path / "old", verbose=", verbose")
    works = not broken_on_this_torch(folder / "dassl")
    code = before + "engine.activate(); engine.activate()"
    warned = run(code, folder).stderr
    if works:  # with an old torch
        assert warned == ""
        return
    lines = [line for line in warned.splitlines() if "Warning: " in line]
    assert len(lines) == 1
    assert str(folder / "dassl") in lines[0]
    assert "NPT_ENGINE=embedded" in lines[0]
    assert run("engine.activate()", folder, NPT_ENGINE="embedded").stderr == ""


@pytest.mark.parametrize("base", ["_LRScheduler", "torch.optim.lr_scheduler.LRScheduler"])
def test_schedulers_that_do_not_work_are_recognised(tmp_path, base, monkeypatch):
    from torch.optim import lr_scheduler

    class Without:
        def __init__(self, optimizer, last_epoch=-1):
            pass

    class With:
        def __init__(self, optimizer, last_epoch=-1, verbose=False):
            pass

    old = site(tmp_path / "old", ", verbose", base) / "dassl"
    repaired = site(tmp_path / "repaired", "", base) / "dassl"
    monkeypatch.setattr(lr_scheduler, "LRScheduler", Without)
    assert broken_on_this_torch(old)
    assert not broken_on_this_torch(repaired)  # its subclasses still pass verbose
    assert not broken_on_this_torch(tmp_path / "nothing")
    monkeypatch.setattr(lr_scheduler, "LRScheduler", With)
    assert not broken_on_this_torch(old)


@pytest.mark.parametrize(
    ("call", "outdated"),
    [("torch.load(fpath)", True), ("torch.load(fpath, weights_only=False)", False)],
)
def test_checkpoints_that_do_not_load_are_recognised(tmp_path, call, outdated):
    import torch

    folder = site(tmp_path / "site") / "dassl"
    (folder / "utils").mkdir()
    (folder / "utils" / "torchtools.py").write_text(f"def load(fpath):\n    return {call}\n")
    strict = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    assert broken_on_this_torch(folder) == ("checkpoints" if outdated and strict else "")


def test_importing_the_embedded_engine_does_not_import_npt(tmp_path):
    """Spawned processes may import it first; its functions import npt, which imports dassl."""
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "dassl")
    code = "import sys, dassl.engine, dassl.evaluation; print('npt' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
    for file in (EMBEDDED / "dassl").rglob("*.py"):
        assert not re.search(r"^(from|import) npt\b", file.read_text(), re.MULTILINE), file


def test_describe_here():
    found = engine.describe()
    assert found == ("embedded", "0.6.3+embedded", str(EMBEDDED / "dassl"))


# --------------------------------------------------------------------------- the first import


SCRIPT = """
import dassl
from dassl.config import get_cfg_default
from npt import engine

print(dassl.__file__)
print(engine.describe().name, "NPT" in get_cfg_default().TRAINER)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with sub/script.py, which imports dassl, and a copy of the engine in sub/dassl."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(SCRIPT)
    shutil.copytree(EMBEDDED / "dassl", tmp_path / "sub" / "dassl")
    return tmp_path


@pytest.mark.parametrize(
    "command, choice",
    [
        ("-m npt.run sub/script.py", ""),
        ("-m npt.run sub/script.py", "installed"),
        ("-m cProfile -o profile -m npt.run sub/script.py", ""),
        ("-c import^npt,runpy,sys;sys.path.insert(0,'sub');runpy.run_path('sub/script.py')", ""),
        ("-c import^npt;from^npt.run^import^run;run(['sub/script.py'])", ""),
    ],
)
def test_a_dassl_in_the_folder_of_the_script_is_found(folder, command, choice):
    words = [word.replace("^", " ") for word in command.split()]
    done = start(*words, path=(NPT.parent,), cwd=folder, NPT_ENGINE=choice)
    assert done.returncode == 0, done.stderr
    file, found = done.stdout.splitlines()[:2]
    assert Path(file) == folder / "sub" / "dassl" / "__init__.py"
    assert found == "installed True"


def test_a_script_that_imports_npt(folder):
    script = folder / "sub" / "script.py"
    script.write_text("import npt\n" + SCRIPT)
    done = start(script, path=(NPT.parent,), cwd=folder)
    assert done.stdout.splitlines()[1] == "installed True", done.stderr
    shutil.rmtree(folder / "sub" / "dassl")
    done = start(script, path=(NPT.parent,), cwd=folder)
    assert done.stdout.splitlines()[1] == "embedded True", done.stderr


def test_a_link_to_the_embedded_engine_is_found(folder):
    shutil.rmtree(folder / "sub" / "dassl")
    (folder / "sub" / "dassl").symlink_to(EMBEDDED / "dassl")
    done = start("-m", "npt.run", "sub/script.py", path=(NPT.parent,), cwd=folder)
    file, found = done.stdout.splitlines()[:2]
    assert Path(file) == folder / "sub" / "dassl" / "__init__.py"
    assert found == "embedded True"


@pytest.mark.parametrize("choice", ["mine", "installed"])
def test_an_engine_that_cannot_be_used_is_one_sentence(folder, choice):
    shutil.rmtree(folder / "sub" / "dassl")
    command = ("-m", "npt.run", "sub/script.py")
    done = start(*command, path=(NPT.parent,), cwd=folder, NPT_ENGINE=choice)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "NPT_ENGINE" in done.stderr


def test_import_npt_does_not_import_the_engine():
    code = "import sys, npt; print([m for m in ('dassl', 'torchvision') if m in sys.modules])"
    assert start("-c", code).stdout.strip() == "[]"


def test_the_imported_module_keeps_its_own_loader():
    code = """
import importlib, npt, dassl
for module in (dassl, importlib.reload(dassl)):
    for loader in (module.__loader__, module.__spec__.loader):
        print(type(loader).__name__)
"""
    done = start("-c", code)
    assert done.stdout.split() == ["SourceFileLoader"] * 4, done.stderr


def test_spawned_processes_unpickle_objects_of_the_engine(tmp_path):
    """The child process imports dassl before npt, or does not import npt at all."""
    (tmp_path / "image.png").touch()
    code = f"""
import inspect, multiprocessing, operator
import npt
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum

datum = Datum({str(tmp_path / "image.png")!r}, label=3)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply(operator.attrgetter("label"), (datum,)))
    print(pool.apply(inspect.getfile, (DatasetWrapper,)) == inspect.getfile(DatasetWrapper))
    print(pool.apply(len, (DatasetWrapper(get_cfg_default(), [datum]),)))
"""
    done = start("-c", code)
    assert done.stdout.split() == ["3", "True", "1"], done.stderr


# ------------------------------------------------------------------------------------- doctor


def test_doctor():
    import torch

    pytest.importorskip("clip")
    result = start(*IGNORE_WARNINGS, "-m", "npt.engine")
    lines = {k: v for k, _, v in (x.partition(": ") for x in result.stdout.splitlines())}
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(lines)[:5] == ["engine", "torch", "torchvision", "clip", "device"]
    assert lines["engine"] == f"embedded dassl 0.6.3+embedded at {EMBEDDED / 'dassl'}: fine"
    assert lines["torch"].startswith(f"torch {torch.__version__} at ")
    assert re.match(r"clip from [\w-]+ [\d.]+ at .*: fine", lines["clip"])
    assert "Everything is fine." in result.stdout


def test_doctor_reports_an_engine_that_cannot_be_used():
    result = start(*IGNORE_WARNINGS, "-m", "npt.engine", NPT_ENGINE="elsewhere")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "engine: NOT FINE" in result.stdout and "NPT_ENGINE" in result.stdout


def test_doctor_runs_with_broken_packages(tmp_path):
    for name in ("clip", "torchvision", "dassl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise OSError('broken')")
    result = start(*IGNORE_WARNINGS, "-m", "npt.engine", path=(tmp_path,))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    wrong = [line.split(":")[0] for line in result.stdout.splitlines() if "NOT FINE" in line]
    assert wrong == ["engine", "torchvision", "clip"]


def test_doctor_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "whether it works" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--all"])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and "--all" in message
    assert message.startswith("error: ") and message.count("\n") == 1


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
    """After a failed check, the remaining checks still run."""
    from npt.engine import __main__ as module

    real = module.importlib.import_module

    def broken(name, *rest):
        if name in ("clip", "torchvision", "dassl.engine"):
            raise RuntimeError(f"no {name}\n today")
        return real(name, *rest)

    monkeypatch.setattr(module.importlib, "import_module", broken)
    assert module.main([]) == 1
    out = capsys.readouterr().out
    assert out.count("NOT FINE") == 3
    assert "torchvision cannot be imported (RuntimeError: no torchvision today): install" in out
    assert len(out.splitlines()) == 8
