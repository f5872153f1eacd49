"""Trainings with one class, or with classes that differ only in a context of their own."""

import warnings

import pytest
import torch
from trainer_kit import build, config

from npt.errors import NPTError
from npt.trainer import NPTMixin


@pytest.mark.parametrize("weights", [(), ("TRAINER.NPT.W1", 0.0)])
def test_npt_says_why_it_needs_two_classes(tmp_path, weights):
    cfg = config("CoOp", "tiny", "OPTIM.MAX_EPOCH", 1, *weights, output=str(tmp_path))
    with pytest.raises(NPTError, match=r"cannot train on one class \('alpha'\)"):
        build(cfg, ["alpha"], kind=NPTMixin).train()


def test_one_class_can_be_trained_without_npt_and_tested(tmp_path):
    off = ("TRAINER.NPT.W1", 0.0, "TRAINER.NPT.W2", 0.0, "OPTIM.MAX_EPOCH", 1)
    trainer = build(config("CoOp", "tiny", *off, output=str(tmp_path)), ["alpha"], kind=NPTMixin)
    trainer.train()
    assert trainer.results["test"]["accuracy"] == 100
    zero = build(config("ZeroshotCLIP", "tiny", output=str(tmp_path / "zero")), ["alpha"])
    assert zero.test() == 100


@pytest.mark.parametrize(
    ("pairs", "left_out"),
    [((), True), (("TRAINER.COOP.CSC", True), False),
     (("TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "a photo of"), True)],
)  # fmt: skip
def test_equal_names_with_contexts_of_their_own_are_two_prompts(pairs, left_out):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = build(config("CoOp", "tiny", *pairs), ["ant", "Ant", "bee"])
    assert any("same prompt" in str(warning.message) for warning in caught) == left_out
    same = trainer.knowledge().same_prompts(torch.zeros(3, 4))
    assert (same is not None) == left_out


def test_without_validation_images_a_run_says_that_no_temperature_is_fitted(tmp_path, capsys):
    cfg = config("CoOp", "tiny", "OPTIM.MAX_EPOCH", 1, output=str(tmp_path))
    build(cfg, ["ant", "bee"]).train()
    assert capsys.readouterr().out.count("no temperature is fitted") == 1
