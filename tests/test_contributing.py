"""The recipes of CONTRIBUTING.md, followed in a clone: its blocks are applied, its commands run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"^```(\w+) file=(\S+)(?: (after|at)=(\S+))?\n(.*?)^```$", re.M | re.S)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)


@pytest.fixture
def follow(repository, python, clone):
    """Apply a recipe's blocks in a clone and run its commands; returns their output, the clone."""

    def run(title: str, **replaced: Path) -> tuple[str, Path]:
        text = (repository / "CONTRIBUTING.md").read_text()
        recipe = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        blocks = BLOCK.findall(recipe)
        assert blocks
        for _, name, how, where, content in blocks:
            apply(clone / name, how, where, content)
        output = ""
        for line in COMMANDS.findall(recipe)[0].replace("\\\n", " ").splitlines():
            words = [str(replaced.get(word, word)) for word in shlex.split(line)]
            assert words[0] == "python"
            done = python(*words[1:], cwd=clone)
            assert done.returncode == 0, done.stderr
            output += done.stdout
        return output, clone

    return run


def apply(file: Path, how: str, where: str, content: str) -> None:
    """Write a new file, append to one, or insert after the line that opens a table."""
    if not how:
        assert not file.exists()
        file.write_text(content)
    elif how == "at":
        file.write_text(f"{file.read_text()}\n\n{content}")
    else:
        opening = re.compile(rf"^({where}\b.*[({{])$", re.M)
        lines = content.rstrip()
        text, number = opening.subn(lambda m: f"{m[1]}\n{lines}", file.read_text(), count=1)
        assert number == 1, f"{file} has no table {where}"
        file.write_text(text)


def result(clone: Path, folder: str) -> dict:
    return json.loads((clone / "output" / folder / "result.json").read_text())


def test_a_method(follow, python):
    output, clone = follow("A method")
    assert "Loading trainer: Shift" in output and "Parameters to be updated" in output
    assert "prompt_learner.shift" in output
    assert result(clone, "shift")["trainer"] == "Shift"
    code = "from dassl.engine import TRAINER_REGISTRY as R; print(R.get('ShiftNPT').__mro__[2])"
    done = python("-c", f"import npt; {code}", cwd=clone)
    assert "shift.Shift" in done.stdout, done.stderr


def test_a_data_set(follow, tmp_path):
    for name in ("kidney", "lima", "soy"):
        for k in range(4):
            file = tmp_path / "DATA" / "beans" / "images" / name / f"{k}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (k, 0, 0)).save(file)
    output, _ = follow("A data set", DATA=tmp_path / "DATA")
    assert all(name in output for name in ("kidney", "lima", "soy", "total"))


def test_a_table(follow):
    output, _ = follow("A table")
    table = output[output.index("harmonic mean") :]
    assert "CoOp " in table and "CoOpNPT" in table


def test_a_term(follow):
    output, clone = follow("A term")
    assert "loss_spread" in output
    assert result(clone, "spread")["training"]["loss_spread"] > 0
    assert result(clone, "spread")["headings"]["loss_spread"] == "spread"


def test_a_measure(follow):
    output, clone = follow("A measure")
    value = result(clone, "length")["results"]["test"]["text_length"]
    assert value > 0 and f"* text_length: {value:.4f}" in output
