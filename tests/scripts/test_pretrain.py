"""scripts/pretrain_tiny.py runs and saves a CLIP."""

import json

import pytest

from npt.backbones.tiny import read_tiny


@pytest.mark.long
def test_a_few_steps(python, repository, tmp_path):
    script = repository / "scripts" / "pretrain_tiny.py"
    sizes = ["--pictures", 512, "--steps", 4, "--batch", 64]
    result = python("-W", "ignore", script, "--out", tmp_path, *sizes)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 4
    state = read_tiny(tmp_path / "tiny_clip.npz")
    assert state["token_embedding.weight"].shape == (49408, 128)
    assert state["visual.proj"].shape == state["text_projection"].shape == (128, 64)
