"""`bash scripts/demo.sh --real` and the estimate of its duration, without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from npt.experiments.estimate import Estimate, estimate, render, words
from npt.experiments.reading import load_experiment
from npt.experiments.running.one import execute_run

bash_only = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
CLASSES = ("AnnualCrop", "Forest", "Highway", "River")
TINY = ("MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0")
SHORT = ("shots", "4", "OPTIM.MAX_EPOCH", "1", "trainers", "ZeroshotCLIP,MaPLe")


@pytest.fixture
def data(tmp_path) -> Path:
    """EuroSAT's layout with four classes of eight images."""
    root = tmp_path / "data"
    parts = {"train": range(4), "val": range(4, 6), "test": range(6, 8)}
    lists: dict[str, list] = {part: [] for part in parts}
    for label, name in enumerate(CLASSES):
        folder = root / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for part, numbers in parts.items():
            for k in numbers:
                Image.new("RGB", (32, 32), (60 * label, 20 * k, 0)).save(folder / f"{k}.jpg")
                lists[part].append([f"{name}/{k}.jpg", label, name])
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(lists))
    return root


@pytest.fixture
def demo(repository, tmp_path, data):
    """Run the script without installing packages and, if `prepared`, without downloads."""

    def run(*arguments: str, prepared: bool = False) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "environment"
        (home / "bin").mkdir(parents=True)
        python = home / "bin" / "python"
        skip = '"-m npt.data prepare"*) ;;' if prepared else ""
        python.write_text(
            f"""#!/bin/sh
case "$*" in
  "-m pip install"*) ;;
  {skip}
  *sys.prefix*) echo {home} ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
        )
        python.chmod(0o755)
        nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
        env = {
            **{key: value for key, value in os.environ.items() if key.lower() != "no_proxy"},
            **nowhere,
            **{"VIRTUAL_ENV": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"},
            **{"OUT": str(tmp_path / "out"), "DATA": str(data), "HOME": str(tmp_path)},
            **{"OMP_NUM_THREADS": "1"},
        }
        return subprocess.run(
            ["bash", str(repository / "scripts" / "demo.sh"), *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


@bash_only
def test_no_network_is_an_error_of_one_sentence(demo, data):
    shutil.rmtree(data)
    done = demo("--real", "eurosat")
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if not x.startswith("Installing")]
    assert line.startswith("error: huggingface.co cannot be reached")
    assert "check the network" in line


@bash_only
@pytest.mark.parametrize("arguments", [["--real"], ["--real", "imagenet"]])
def test_a_data_set_without_a_demo_is_an_error(demo, arguments):
    done = demo(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "eurosat" in done.stderr


@bash_only
@pytest.mark.long
def test_the_demo_on_images_of_the_real_layout(demo, tmp_path):
    """With the small CLIP instead of ViT-B/16."""
    done = demo("--real", "eurosat", *SHORT, *TINY, prepared=True)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("Base-to-new generalisation under imbalance, EuroSAT")
    assert "Estimate: about" in before and "MaPLe" in before
    assert "2 runs, 0 of them complete" in after and "harmonic mean" in after
    assert (tmp_path / "out" / "features.png").is_file()


# --------------------------------------------------------------------------- the estimate
@pytest.fixture
def runs(data, tmp_path):
    pairs = [*SHORT, *TINY]
    pairs += ["DATASET.ROOT", str(data), "TRAINER.MAPLE.PREC", "fp32"]
    return load_experiment("configs/experiments/paper/demo_eurosat.yaml", pairs).runs(
        tmp_path / "runs"
    )


def test_numbers_of_steps(runs):
    """Two base classes with 4 and 1 images at ratio 0.01; batches of 4; 4 test images."""
    zero_shot, maple = estimate(runs, say=lambda text: None)
    assert (zero_shot.train_steps, maple.train_steps) == (0, 1)
    assert zero_shot.test_steps == maple.test_steps == 2  # base and new
    assert maple.seconds > 0 and zero_shot.seconds > 0


def test_complete_runs_are_not_estimated(runs):
    execute_run(runs[0])
    (left,) = estimate(runs, say=lambda text: None)
    assert left.label == "MaPLe"


def test_the_time_of_all_runs(monkeypatch):
    monkeypatch.setattr("npt.experiments.estimate.default_jobs", lambda: (2, [{}]))
    text = render(
        [
            Estimate("A", "eurosat", 0.01, 3, 0.5, 1000, 1.0, 100),  # three runs of 10 minutes
            Estimate("B", "eurosat", 0.01, 1, 0.5, 2000, 2.0, 100),  # one of 20
        ]
    )
    assert "Estimate: about 25 min on" in text and "2 at a time" in text
    alone = render([Estimate("B", "eurosat", 0.01, 1, 0.5, 2000, 2.0, 100)])
    assert "Estimate: about 20 min on" in alone and "1 at a time" in alone


@pytest.mark.parametrize(
    "seconds, text", [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (12600, "3.5 h")]
)
def test_formatted_times(seconds, text):
    assert words(seconds) == text
