"""Hosts that bring their own package `clip`."""

from __future__ import annotations

import random
import shutil
import sys
import warnings
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from hosts_kit import Run

from npt.backbones import openai
from npt.errors import NPTError

INSTALLED = Path(clip.__file__).parent
POOLING = [
    ("query=x[:1]", "query=x"),
    ("return x.squeeze(0)", "return x"),
]  # of ResNets: as in PLOT
BUILD = ("def build_model(state_dict: dict):", "def build_model(state_dict: dict, design):")
NAME = ("ResidualAttentionBlock", "LayerWithAdapter")


def copy_clip(folder: Path, *replaced: tuple[str, str]) -> Path:
    """A copy of the installed package in `folder`, with these changes of model.py."""
    shutil.copytree(INSTALLED, folder / "clip", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "clip" / "model.py"
    source = file.read_text()
    for old, new in replaced:
        assert old in source
        source = source.replace(old, new)
    file.write_text(source)
    return folder / "clip"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No clip is imported, and a host's folder, `tmp_path`, comes first on the search path."""

    def forget() -> dict:
        names = [n for n in sys.modules if n.partition(".")[0] in ("clip", openai.SECOND_NAME)]
        return {name: sys.modules.pop(name) for name in names}

    before = forget()
    openai._search.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()
    sys.modules.update(before)
    openai._search.cache_clear()


def found() -> tuple[str, Path]:
    package = openai.openai_clip()
    assert package is openai.openai_clip()
    return package.__name__, Path(package.__file__).parent


SECOND = (openai.SECOND_NAME, INSTALLED)


def test_a_host_s_copy_of_openais_code_is_used(fresh):
    theirs = copy_clip(fresh, NAME)
    assert found() == ("clip", theirs)


@pytest.mark.parametrize("replaced", [POOLING, [BUILD]], ids=["pooling", "arguments"])
@pytest.mark.parametrize("imported", [True, False])
def test_a_host_s_other_clip_is_passed_over(fresh, replaced, imported):
    theirs = copy_clip(fresh, *replaced)
    if imported:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            __import__("clip")
    assert found() == SECOND
    assert Path(sys.modules["clip"].__file__).parent == theirs


@pytest.mark.parametrize(
    "files",
    [
        {"clip.py": "tokenize = str.split\n"},
        {"clip/__init__.py": "from .simple_tokenizer import *\n", "clip/simple_tokenizer.py": ""},
        {"clip/__init__.py": "raise RuntimeError('a GPU is needed')\n"},
        {"clip/__init__.py": "from .missing import load\n"},
        {"clip/__init__.py": "def broken(:\n"},
        {"clip/readme.txt": "a namespace package\n"},
    ],
    ids=["file", "tokenizer", "raises", "import error", "syntax error", "namespace"],
)
def test_whatever_else_is_called_clip_is_passed_over(fresh, files):
    for name, text in files.items():
        (fresh / name).parent.mkdir(exist_ok=True)
        (fresh / name).write_text(text)
    name, folder = found()
    assert folder == INSTALLED and name == ("clip" if "clip/readme.txt" in files else SECOND[0])


def test_an_openai_clip_that_is_patched_is_imported_again(fresh, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip as theirs
    patched = theirs.model.VisionTransformer
    monkeypatch.setattr(patched, "forward", lambda self, x: (patched.forward(self, x), None))
    assert found() == SECOND
    assert openai.openai_clip().model.VisionTransformer is not patched


def test_a_package_that_only_another_finder_knows_is_found(fresh, monkeypatch, tmp_path_factory):
    """As with `pip install -e`."""
    from importlib.machinery import PathFinder

    copy_clip(fresh, BUILD)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    copy_clip(elsewhere)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return PathFinder.find_spec(name, [str(elsewhere)]) if name == "clip" else None

    monkeypatch.setattr(sys, "path", [str(fresh), *_without_clip()])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder, object()])
    assert found() == (openai.SECOND_NAME, elsewhere / "clip")


def _without_clip() -> list[str]:
    return [entry for entry in sys.path if not (Path(entry or ".") / "clip").is_dir()]


def test_without_openais_clip_the_sentence_names_what_was_found(fresh, monkeypatch):
    theirs = copy_clip(fresh, *POOLING)
    monkeypatch.setattr(sys, "path", [str(fresh), *_without_clip()])
    with pytest.raises(NPTError, match=r"pip install clip-anytorch") as raised:
        openai.openai_clip()
    assert f"{theirs / '__init__.py'}: its models give other features" in str(raised.value)
    assert openai.SECOND_NAME not in sys.modules
    shutil.rmtree(theirs)
    sys.modules.pop("clip")
    with pytest.raises(NPTError, match=r"No module named 'clip'.*pip install clip-anytorch"):
        openai.openai_clip()


def test_the_search_leaves_random_states_and_warnings_alone(fresh):
    theirs = copy_clip(fresh, *POOLING)
    text = "import random, warnings\nrandom.seed(1)\nwarnings.warn('changed')\n"
    (theirs / "clip.py").write_text(text + (theirs / "clip.py").read_text())
    states = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found() == SECOND
    assert states == [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


# ---- runs

RUN = """
import importlib.machinery, runpy, sys
sys.path.insert(0, {folder!r})
find = importlib.machinery.PathFinder.find_spec
def hidden(name, path=None, *more):
    places = path or sys.path
    if name == "clip":
        path = [p for p in places if p == {folder!r}]
    return find(name, path, *more)
importlib.machinery.PathFinder.find_spec = hidden
from npt.host.run import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def alone(host, tmp_path):
    """Run the host with a `clip` of its own, and without OpenAI's."""
    copy_clip(tmp_path, *POOLING, NAME)
    program = tmp_path / "alone.py"
    program.write_text(RUN.format(folder=str(tmp_path)))

    def run(trainer: str, *pairs: object, name: str = "out"):
        return host(trainer, tmp_path / name, *pairs, program=(program, "train.py"))

    return run


def test_without_openais_clip_npt_s_own_models_say_what_is_missing(alone):
    """Whatever the host has itself goes on working."""
    done = alone("CoCoOpNPT")
    assert done.returncode == 0, done.stderr
    base = ("TRAINER.NPT.BASE", "ZeroshotCLIP", "MODEL.BACKBONE.NAME", "tiny")
    done = alone("NPT", *base, name="ours")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "is hidden by a changed copy" in done.stderr and "clip-anytorch" in done.stderr


def test_a_mistyped_base_is_named_without_openais_clip(alone):
    done = alone("NPT", "TRAINER.NPT.BASE", "CoOpp")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert 'The trainer to wrap is "CoOpp"' in done.stderr and "KgCoOp" in done.stderr


def test_a_host_s_model_is_accelerated_without_openais_clip(alone, trained, tmp_path):
    done = alone("CoOpNPT", "MODEL.ACCELERATE", True)
    assert done.returncode == 0, done.stderr
    assert "the host's own computation" not in done.stderr
    weights = Run(done, tmp_path / "out").weights
    for name, value in trained("CoOpNPT").weights.items():
        assert torch.allclose(weights[name], value, atol=1e-4)
