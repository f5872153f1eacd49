"""benchmarks/gpu.py, in miniature and without a GPU."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The module; its models are small only until the end of the test."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "found"), *args])
        return gpu.main()

    yield gpu, run
    for name in ("gpu", "launches", "step", "_checkout"):
        sys.modules.pop(name, None)


def test_every_part_runs_and_the_same_command_goes_on(gpu, tmp_path, capsys, monkeypatch):
    module, run = gpu

    def broken(device, case):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setitem(module.PARTS, "memory", broken)
    assert run("--device", "cpu", "--small") == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert set(rows) == set(module.PARTS)
    assert [row.get("failed") for row in rows["memory"]] == ["CUDA out of memory."]
    for name, found in rows.items():
        assert name == "memory" or all("failed" not in row for row in found), found
    for row in rows["exactness"]:
        for what in ("image", "text"):
            assert row[f"fast {what}"] < 3 * row[f"plain {what}"] + 1e-6
    assert rows["exactness"][0]["fast logits"] < 1e-3
    accuracies = [row["accuracy"] for row in rows["training"]]
    assert max(accuracies) - min(accuracies) < 5
    assert all(row["fast"] < row["plain"] for row in rows["launches"])
    page = (tmp_path / "found.md").read_text()
    assert all(f"## {part}" in page for part in module.PARTS) and "torch: " in page
    capsys.readouterr()
    assert run("--device", "cpu", "--small") == 0
    assert capsys.readouterr().out == ""  # nothing is left to do


def test_figures_of_two_machines_are_not_mixed(gpu, tmp_path, capsys, monkeypatch):
    module, run = gpu
    assert run("--device", "cpu", "--small", "--parts", "memory") == 0
    assert module.read_record(tmp_path / "found.json")["rows"]["memory"][0]["kept"] > 0
    monkeypatch.setattr(module.step, "processor", lambda: "another one")
    assert run("--device", "cpu", "--small") == 2
    assert "another one" in capsys.readouterr().err
