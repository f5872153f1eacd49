"""benchmarks/soak.py: faults at random moments of an experiment change no figure."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec = importlib.util.spec_from_file_location("soak", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "soak", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.mark.slow
@pytest.mark.long
def test_five_minutes_of_faults():
    command = [sys.executable, str(SCRIPT), "--minutes", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    (total,) = (line.split("|") for line in done.stdout.splitlines() if line.startswith("| all "))
    rounds, *ends = (int(cell) for cell in total[2:-1])
    assert rounds >= 3 and ends[-1] == 0


def test_a_figure_that_differs_is_named(soak):
    expected = {"a/result.json": {"test": {"accuracy": 57.5}}}
    assert soak.difference(expected, {"a/result.json": {"test": {"accuracy": 57.5}}}) == ""
    assert "8.3" in soak.difference(expected, {"a/result.json": {"test": {"accuracy": 8.3}}})
    assert soak.difference(expected, {}) and soak.difference({}, expected)


def test_the_file_that_a_sentence_says_to_delete(soak):
    words = (
        "error: /tmp/s-1/out/base/result.json cannot be read (Expecting): delete it and run again."
    )
    assert soak.to_delete(words) == Path("/tmp/s-1/out/base/result.json")
    assert soak.to_delete('failed: x: "/tmp/a.tar-2" is damaged: delete it (see /tmp/log.txt)') == (
        Path("/tmp/a.tar-2")
    )
    words = "error: /tmp/s/a.png was changed: delete /tmp/s, and the next run makes it again."
    assert soak.to_delete(words) == Path("/tmp/s")
    assert soak.to_delete("failed: x: No space left on device (see /tmp/log.txt)") is None


def test_damage_changes_a_file(soak):
    content, chance = bytes(range(100)), random.Random(0)
    flipped = [soak.flipped(bytearray(content), chance) for _ in range(20)]
    assert all(bin(int.from_bytes(x) ^ int.from_bytes(content)).count("1") == 1 for x in flipped)
    cut = [soak.truncated(bytearray(content), chance) for _ in range(20)]
    assert all(content.startswith(x) and len(x) < 100 for x in cut)
