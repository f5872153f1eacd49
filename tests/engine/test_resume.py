"""A run that is killed and resumed gives exactly the results of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dassl.engine.resume import random_state, run_state, set_random_state, set_run_state
from npt.engine import EMBEDDED

HERE = Path(__file__).parent


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def killed(root: str, output: Path, step: int, *pairs: object) -> None:
    """Train in a process that SIGKILL ends before `step`."""
    arguments = [sys.executable, HERE / "host.py", root, output, "--kill-at", step, *pairs]
    process = subprocess.run(
        list(map(str, arguments)),
        env={**os.environ, "PYTHONPATH": str(EMBEDDED), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("step", "pairs"),
    [
        (6, ()),  # in the middle of the second epoch
        (9, ("DATALOADER.NUM_WORKERS", 2, "OPTIM.NAME", "adam", "TEST.FINAL_MODEL", "best_val")),
    ],
)
def test_killed_and_resumed(host, root, tmp_path, capsys, step, pairs):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    host.main(root, str(straight), *pairs)
    killed(root, broken, step, *pairs)
    epochs = step // 4
    assert (broken / "net" / "checkpoint").read_text().strip() == f"model.pth.tar-{epochs}"
    assert not (broken / "order.json").exists()

    capsys.readouterr()
    host.main(root, str(broken), *pairs)
    out = capsys.readouterr().out
    assert f"Found checkpoint at {broken} (will resume training)" in out
    assert f"Previous epoch: {epochs}" in out
    assert f"epoch [{epochs + 1}/3]" in out and "epoch [1/3]" not in out

    whole = json.loads((straight / "order.json").read_text())
    rest = json.loads((broken / "order.json").read_text())
    # epoch, learning rate, loss, sum of the augmented pixels, image files
    assert rest == [entry for entry in whole if entry[0] >= epochs]
    final = [
        torch.load(f / "net" / "model.pth.tar-3", weights_only=True) for f in (straight, broken)
    ]
    assert same(*final)  # weights, optimizer, schedule, random generators, best result


def test_resume_from_another_folder(host, root, tmp_path, capsys):
    killed(root, tmp_path / "a", 6)
    capsys.readouterr()
    host.main(root, str(tmp_path / "b"), "RESUME", str(tmp_path / "a"))
    out = capsys.readouterr().out
    assert f"Found checkpoint at {tmp_path / 'a'} (will resume training)" in out
    assert (tmp_path / "b" / "net" / "model.pth.tar-3").exists()


def test_a_finished_run_is_only_tested(host, root, tmp_path, capsys):
    host.main(root, str(tmp_path))
    capsys.readouterr()
    trainer = host.main(root, str(tmp_path))
    out = capsys.readouterr().out
    assert "Previous epoch: 3" in out and "epoch [" not in out
    assert "=> result" in out
    assert trainer.epoch == 2


def test_a_subclass_may_draw_before_training(host, root, tmp_path):
    """Random numbers drawn in before_train do not change the random numbers of a resumed run."""

    class Draws(host.Plain):
        def before_train(self):
            super().before_train()
            if self.start_epoch:
                torch.rand(10)

    def train(output, epochs):
        host.set_random_seed(0)
        cfg = host.config(root, str(output), "OPTIM.MAX_EPOCH", 3)
        trainer = Draws(cfg)
        trainer.max_epoch = epochs
        trainer.train()
        return trainer.order

    whole = train(tmp_path / "a", 3)
    train(tmp_path / "b", 2)
    assert train(tmp_path / "b", 3) == [entry for entry in whole if entry[0] == 2]


def test_unseeded_and_seed_zero(host, root, tmp_path):
    runs = {
        seed: [host.main(root, str(tmp_path / f"{seed}{i}"), "SEED", seed).order for i in range(2)]
        for seed in (0, -1)
    }
    assert runs[0][0] == runs[0][1]
    assert runs[-1][0] != runs[-1][1]


def test_random_state_round_trip(tmp_path):
    import random

    import numpy as np

    random.gauss(0, 1)
    np.random.standard_normal()  # both generators now have a second normal number in store
    torch.save(random_state(), tmp_path / "s")

    def draw():
        return random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()

    expected = draw()
    draw()
    set_random_state(torch.load(tmp_path / "s", weights_only=True))
    assert draw() == expected


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales on CUDA only")
def test_loss_scalers_are_kept():
    """The scale of a host's GradScaler (`self.scaler`) is restored."""

    class Trainer:
        best_result = 3.0

    def trainer():
        made = Trainer()
        made.scaler = torch.amp.GradScaler("cpu")
        return made

    first, second = trainer(), trainer()
    first.scaler._growth_tracker = None
    first.scaler._init_scale = 128.0
    set_run_state(second, run_state(first))
    assert second.scaler.get_scale() == 128.0
    assert second.best_result == 3.0
