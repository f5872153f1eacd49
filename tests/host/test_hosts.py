"""NPT in an unchanged host repository: trainers of every pattern train and test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hosts_kit import PATTERNS, Run

import npt
from npt.engine import EMBEDDED

REPO = Path(__file__).parent / "repo"
NEEDS_TORCH_2_2 = {
    "ProGrad": "older torch does not show whether a backward pass keeps the graph",
    "Amp": "in older torch CLIP's layers do not support bfloat16 autocast on CPUs",
}


@pytest.mark.parametrize("trainer", PATTERNS)
def test_every_pattern_trains_and_tests(trained, trainer):
    is_newer = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
    if trainer in NEEDS_TORCH_2_2 and not is_newer:
        pytest.skip(NEEDS_TORCH_2_2[trainer])
    run = trained(f"{trainer}NPT")
    assert f"Loading trainer: {trainer}NPT" in run.done.stdout
    assert "loss_lc" in run.done.stdout and "loss_mi" in run.done.stdout
    measures = run.result["results"]["test"]
    assert run.result["train_counts"] == [2] * 8
    assert all(measures[name] is not None for name in ("lcd", "mid", "nc1", "nc2", "nc3"))
    assert measures["accuracy"] == pytest.approx(run.accuracy, abs=0.05)


@pytest.mark.parametrize("trainer", ["CoCoOp", "MaPLe"])
def test_with_zero_weights_it_equals_the_host_s_trainer_bit_for_bit(trained, trainer):
    alone = trained(trainer)
    wrapped = trained(f"{trainer}NPT", "TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)
    assert alone.accuracy == wrapped.accuracy
    assert alone.weights.keys() == wrapped.weights.keys()
    assert all(torch.equal(wrapped.weights[key], x) for key, x in alone.weights.items())
    changed = [key for key, x in trained(f"{trainer}NPT").weights.items() if "ctx" in key]
    assert not any(
        torch.equal(alone.weights[k], trained(f"{trainer}NPT").weights[k]) for k in changed
    )


def test_a_trainer_is_wrapped_under_both_names(trained):
    by_name, by_base = trained("KgCoOpNPT"), trained("NPT", "TRAINER.NPT.BASE", "KgCoOp")
    assert by_name.accuracy == by_base.accuracy
    assert torch.equal(by_name.weights["ctx"], by_base.weights["ctx"])


def test_import_npt_works_anywhere_in_train_py(host, trained, tmp_path):
    source = (REPO / "train.py").read_text()
    first = source.replace('"""The host', 'import npt\n"""The host', 1)
    last = source.replace("\n\ndef extend_cfg", "\nimport npt\n\n\ndef extend_cfg", 1)
    assert first != source != last
    for name, text in (("first", first), ("last", last)):
        script = tmp_path / f"{name}.py"
        script.write_text(f"import sys\nsys.path[:0] = [{str(REPO)!r}, {str(EMBEDDED)!r}]\n{text}")
        done = host("MaPLeNPT", tmp_path / name, program=(script,))
        assert done.returncode == 0, done.stderr
        run = Run(done, tmp_path / name)
        assert run.accuracy == trained("MaPLeNPT").accuracy
        for key, x in trained("MaPLeNPT").weights.items():
            assert torch.equal(run.weights[key], x)


def test_the_host_imports_its_own_packages(trained):
    """Its `trainers` and `datasets`, although NPT has folders with the same names."""
    stdout = trained("MaPLe").done.stdout
    assert "Loading dataset: Dots" in stdout and "IMBALANCE_RATIO: 1.0" in stdout


def test_the_host_s_training_set_is_thinned(trained):
    run = trained("CoOpNPT", "DATASET.NUM_SHOTS", 16, "DATASET.IMBALANCE_RATIO", 0.1)
    assert "Imbalance ratio 0.1 (label order): 128 ->" in run.done.stdout
    counts = run.result["train_counts"]
    assert counts[0] == 16 and counts[-1] == 1 and counts == sorted(counts, reverse=True)


def test_wrong_settings_end_with_one_sentence(host, tmp_path):
    done = host("CoOpNPT", tmp_path, "TRAINER.NPT.W1", -1.0)
    assert done.returncode == 2 and "TRAINER.NPT.W1 is -1.0" in done.stderr
    assert "Traceback" not in done.stderr
    unknown = host("Nobody", tmp_path)
    assert "KgCoOpNPT" in unknown.stderr  # in the list of names


# ---- features that no encoder computes


def test_the_error_of_a_model_without_text_encoder_explains_adapters(host, tmp_path):
    done = host("DistancesNPT", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Nearest has no module `text_encoder`" in done.stderr
    assert "npt.register(" in done.stderr and "docs/plugin.md" in done.stderr


ADAPTER = """
import npt
npt.register("TaskRes", features=lambda model, batch: npt.Features(None, model.texts()))
"""


def test_an_adapter_provides_the_features(host, tmp_path):
    script = tmp_path / "adapted.py"
    source = (REPO / "train.py").read_text()
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPO)!r})\n{ADAPTER}\n{source}")
    run = Run(host("TaskResNPT", tmp_path / "out", program=(script,)), tmp_path / "out")
    assert run.done.returncode == 0, run.done.stderr
    measures = run.result["results"]["test"]
    assert measures["lcd"] > 0 and measures["mid"] is not None
    assert run.weights["residual"].abs().max() > 0


# ---- checkpoints


@pytest.fixture
def tested(host, tmp_path):
    """Test a checkpoint with a trainer."""

    def run(trainer: str, model: Path, *pairs: object) -> Run:
        flags = ("--eval-only", "--model-dir", model, "--load-epoch", 2)
        done = host(trainer, tmp_path / "tested", *pairs, flags=flags)
        assert done.returncode == 0, done.stderr
        return Run(done, tmp_path / "tested")

    return run


@pytest.mark.parametrize("trainer", ["MaPLe", "CoCoOp"])
def test_checkpoints_work_with_and_without_npt(trained, tested, trainer):
    for maker, reader in ((trainer, f"{trainer}NPT"), (f"{trainer}NPT", trainer)):
        made = trained(maker)
        assert tested(reader, made.output).accuracy == made.accuracy


OURS = """
import sys
sys.path.insert(0, {repo!r})
from npt.cli import main
import datasets.dots  # the host's data, with NPT's trainers
sys.exit(main())
"""
SAME = {
    "CoOp": ("TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.PREC", "fp32"),
    "MaPLe": (
        *("TRAINER.MAPLE.N_CTX", 4, "TRAINER.MAPLE.CTX_INIT", "a photo of a"),
        *("TRAINER.MAPLE.PROMPT_DEPTH", 3, "TRAINER.MAPLE.PREC", "fp32"),
    ),
}


@pytest.mark.parametrize("trainer", SAME)
def test_checkpoints_are_shared_by_npt_s_and_the_host_s_trainers(
    trained, tested, host, host_clip, tmp_path, trainer
):
    script = tmp_path / "ours.py"
    script.write_text(OURS.format(repo=str(REPO)))
    same = ("MODEL.BACKBONE.NAME", host_clip, *SAME[trainer])
    made = Run(host(trainer, tmp_path / "ours", *same, program=(script,)), tmp_path / "ours")
    assert made.done.returncode == 0, made.done.stderr
    assert tested(trainer, made.output).accuracy == made.accuracy
    theirs = trained(trainer)
    flags = ("--eval-only", "--model-dir", theirs.output, "--load-epoch", 2)
    read = host(trainer, tmp_path / "read", *same, flags=flags, program=(script,))
    assert read.returncode == 0, read.stderr
    assert Run(read, tmp_path / "read").accuracy == theirs.accuracy


def test_a_checkpoint_works_for_other_classes(trained, tested):
    base = trained("MaPLeNPT", "DATASET.SUBSAMPLE_CLASSES", "base").output
    new = ("DATASET.SUBSAMPLE_CLASSES", "new")
    by_host = tested("MaPLe", base, *new)
    assert tested("MaPLeNPT", base, *new).accuracy == by_host.accuracy


def test_a_checkpoint_of_data_parallel_is_loaded(trained, tested, tmp_path):
    made = trained("PromptSRC")
    file = tmp_path / "run" / made.checkpoint.relative_to(made.output)
    file.parent.mkdir(parents=True)
    saved = torch.load(made.checkpoint, weights_only=True)
    saved["state_dict"] = {f"module.{key}": x for key, x in saved["state_dict"].items()}
    torch.save(saved, file)
    assert tested("PromptSRCNPT", tmp_path / "run").accuracy == made.accuracy


# ---- python -m npt.run


def test_the_last_line_of_an_error_says_what_ran(host, trained, tmp_path):
    """Of a bug in the host, of a sentence for the user, and before there is a trainer."""
    file = REPO / "train.py"
    for trainer, pairs, code, before in (
        ("NamedNPT", ("TRAINER.HOST.N_CTX", 90), 1, "Traceback"),
        ("CoOpNPT", ("TRAINER.NPT.W1", -1.0), 2, "error: TRAINER.NPT.W1"),
    ):
        done = host(trainer, tmp_path, *pairs)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == code and any(line.startswith(before) for line in lines)
        assert lines[-1].startswith(f"host {file.parent}, trainer {trainer}, dassl embedded 0.6")
        assert f"npt {npt.__version__}: docs/plugin.md" in lines[-1]
        assert sum("docs/plugin.md of npt" in line for line in lines) == 1


def test_run_reports_a_missing_script(python, tmp_path):
    for arguments, message in (
        ([], "the first argument must be a script"),
        (["--trainer", "X"], "the first argument must be a script"),
        (["nowhere.py"], "there is no script 'nowhere.py'"),
    ):
        done = python("-m", "npt.run", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert "usage" in python("-m", "npt.run", "--help", cwd=tmp_path).stdout


def test_run_executes_a_script_like_python(python, tmp_path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "script.py").write_text(
        "import sys, beside, dassl\n"
        "print(__name__, sys.argv[1:], beside.NAME, __file__, sys.path[0])\n"
        "sys.exit(3)\n"
    )
    done = python("-m", "npt.run", tmp_path / "script.py", "--a", "1", cwd=tmp_path / "sub")
    assert done.returncode == 3
    expected = f"__main__ ['--a', '1'] beside {tmp_path / 'script.py'} {tmp_path}"
    assert done.stdout.strip() == expected


def test_a_bug_in_the_host_keeps_its_traceback(python, tmp_path):
    (tmp_path / "script.py").write_text("{}['missing']\n")
    done = python("-m", "npt.run", "script.py", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError" in done.stderr


def test_the_last_line_comes_after_an_exit_with_a_message(python, tmp_path):
    (tmp_path / "script.py").write_text("import sys, dassl\nsys.exit('no teacher here')\n")
    done = python("-m", "npt.run", "script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:-1] == ["no teacher here"]
    assert done.stderr.splitlines()[-1].startswith(f"host {tmp_path}, trainer none yet")


@pytest.mark.parametrize("fault", ["freeze()", "missing()"])
def test_a_host_that_replaces_errors_does_not_hide_the_sentence(python, tmp_path, fault):
    """As in DePT; a bug keeps its traceback there, too."""
    (tmp_path / "script.py").write_text(
        "from dassl.config import get_cfg_default\n"
        "cfg = get_cfg_default()\n"
        "cfg.TRAINER.NPT.W1 = -1.0\n"
        f"try:\n    cfg.{fault}\n"
        "except:\n    raise Exception('The training failed!')\n"
    )
    done = python("-m", "npt.run", "script.py", cwd=tmp_path)
    if fault == "freeze()":
        assert done.returncode == 2 and "TRAINER.NPT.W1 is -1.0" in done.stderr
        assert "the host then raised Exception: The training failed!" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 1 and "AttributeError: missing" in done.stderr


def test_an_engine_in_the_host_s_folder_is_found(python, tmp_path):
    """A host with its own copy of Dassl uses it, from any working directory."""
    (tmp_path / "dassl").symlink_to(EMBEDDED / "dassl")
    (tmp_path / "script.py").write_text("import dassl; print(dassl.__file__)\n")
    done = python("-m", "npt.run", tmp_path / "script.py", cwd="/")
    assert done.stdout.startswith(str(tmp_path)), done.stdout + done.stderr


def test_import_npt_is_light(python):
    heavy = "matplotlib pandas scipy sklearn tensorboard tensorflow submitit rich hypothesis"
    code = f"import npt, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
