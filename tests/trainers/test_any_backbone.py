"""Trainings on a CLIP of Hugging Face: its preprocessing is followed, its files are on record."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from foreign_clips import of_transformers

import npt
from npt import cli
from npt.backbones import sources
from npt.commands.train import METHODS
from npt.flags import parse_args, setup_cfg
from npt.results import of_run

pytest.importorskip("transformers")
PART = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "hidden_act": "gelu"}
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 2}
TINY = "configs/trainers/CoOp/tiny.yaml"
QUICK = ["DATALOADER.NUM_WORKERS", "0", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small CLIP with GELU, of images of 48 x 48 pixels with other means than OpenAI's."""
    path = tmp_path_factory.mktemp("hf") / "clip"
    vision = {**PART, "patch_size": 16, "image_size": 48}
    of_transformers(PART, vision, projection_dim=32).model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_predicts(method, folder, tmp_path):
    words = f"--config-file configs/trainers/{METHODS[method].tiny}.yaml --seed 1"
    argv = [*words.split(), "--trainer", METHODS[method].trainer, "--backbone", str(folder)]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "GELU")
        assert cli.main([*argv, "--output-dir", str(tmp_path / "run"), *QUICK]) == 0
    record = of_run(tmp_path / "run")
    assert record["config"]["INPUT"]["SIZE"] == [48, 48]
    assert record["config"]["INPUT"]["PIXEL_MEAN"] == PROCESSOR["image_mean"]
    for file in (tmp_path / "run").glob("*/model*.pth.tar*"):
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        assert checkpoint["backbone_file"] == sources.digest_of(str(folder))
    classifier = npt.load(tmp_path / "run")
    assert classifier.preprocess(torch.zeros(3, 60, 80, dtype=torch.uint8)).shape == (1, 3, 48, 48)
    assert classifier.predict(torch.zeros(3, 48, 48, dtype=torch.uint8)).best in classifier.classes


def test_a_checkpoint_knows_its_clip_by_checksum_not_by_name(folder, tmp_path, capsys):
    argv = ["--config-file", TINY, "--trainer", "CoOp", "--seed", "1"]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    run, renamed = tmp_path / "run", tmp_path / "other name"
    assert cli.main([*argv, "--backbone", str(folder), "--output-dir", str(run), *QUICK]) == 0
    renamed.symlink_to(folder)
    test = [*argv, "--eval-only", "--model-dir", str(run), "--output-dir", str(tmp_path / "test")]
    assert cli.main([*test, "--backbone", str(renamed), *QUICK]) == 0
    capsys.readouterr()
    assert cli.main([*test[:-1], str(tmp_path / "2"), "--backbone", "tiny", *QUICK]) == 2
    assert "was trained with MODEL.BACKBONE.NAME" in capsys.readouterr().err


# ---- INPUT follows the model


def inputs(*words: str) -> dict:
    """INPUT of the config of a command line."""
    fixed = ["--trainer", "MaPLe", "--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    return dict(setup_cfg(parse_args([*fixed, *words])).INPUT)


def test_without_settings_the_preprocessing_is_the_model_s(folder, tmp_path):
    found = inputs("--backbone", str(folder))
    assert (found["SIZE"], found["INTERPOLATION"]) == ((48, 48), "bilinear")
    assert found["PIXEL_STD"] == PROCESSOR["image_std"]
    file = tmp_path / "mine.yaml"
    file.write_text(f"MODEL: {{BACKBONE: {{NAME: '{folder}'}}}}\n")
    assert inputs("--config-file", str(file)) == found
    assert inputs("--backbone", "ViT-L/14@336px")["SIZE"] == (336, 336)
    assert inputs("--backbone", "RN50x4")["SIZE"] == (288, 288)
    assert inputs("--backbone", "tiny")["SIZE"] == (32, 32)


def test_settings_of_a_file_hold_for_its_own_model_only(folder, tmp_path):
    file = tmp_path / "mine.yaml"
    own = "PIXEL_MEAN: [0.1, 0.1, 0.1]"
    file.write_text(f"INPUT: {{{own}}}\nMODEL: {{BACKBONE: {{NAME: 'ViT-B/16'}}}}\n")
    assert inputs("--config-file", str(file))["PIXEL_MEAN"] == [0.1, 0.1, 0.1]
    same = inputs("--config-file", str(file), "--backbone", "ViT-B/16")
    assert same["PIXEL_MEAN"] == [0.1, 0.1, 0.1]
    with pytest.warns(UserWarning, match=r"ViT-B/16.*INPUT\.PIXEL_MEAN.*0\.5"):
        found = inputs("--config-file", str(file), "--backbone", str(folder))
    assert found["PIXEL_MEAN"] == PROCESSOR["image_mean"]


def test_settings_of_the_command_line_hold(folder):
    found = inputs("--backbone", str(folder), "INPUT.PIXEL_MEAN", "[0.2, 0.2, 0.2]")
    assert found["PIXEL_MEAN"] == [0.2, 0.2, 0.2] and found["SIZE"] == (48, 48)


def test_a_mismatch_is_said(folder, tmp_path, capsys):
    argv = ["--trainer", "ZeroshotCLIP", "--config-file", "configs/trainers/ZeroshotCLIP/tiny.yaml"]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml", "--no-train"]
    argv += ["--backbone", str(folder), "--output-dir", str(tmp_path / "run"), *QUICK]
    with pytest.warns(UserWarning, match=r"trained with another preprocessing: INPUT\.PIXEL_MEAN"):
        assert cli.main([*argv, "INPUT.PIXEL_MEAN", "[0.2, 0.2, 0.2]"]) == 0
    capsys.readouterr()
    assert cli.main([*argv, "INPUT.SIZE", "(32, 32)"]) == 2
    assert "takes images of (48, 48)" in capsys.readouterr().err


def test_a_clip_that_cannot_be_found_is_named_by_the_run(tmp_path, capsys):
    argv = ["--trainer", "ZeroshotCLIP", "--config-file", "configs/trainers/ZeroshotCLIP/tiny.yaml"]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    assert cli.main([*argv, "--backbone", str(tmp_path), *QUICK]) == 2
    assert "has no config.json" in capsys.readouterr().err
