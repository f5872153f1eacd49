"""train.py's program: what a run prints and leaves, and what is refused."""

import json
import re
import subprocess
import sys
import warnings

import pytest

from npt import cli
from npt.__main__ import VERBS
from npt.__main__ import main as npt_command
from npt.flags import parse_args, setup_cfg
from npt.session import session

DATA = ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
MAPLE = ["--trainer", "MaPLe", "--config-file", "configs/trainers/MaPLe/tiny.yaml"]
QUICK = """
    DATALOADER.NUM_WORKERS 0  DATASET.NUM_SHOTS 2  OPTIM.MAX_EPOCH 1  USE_CUDA False
"""
QUICK = QUICK.split()
WORKERS = ["DATALOADER.NUM_WORKERS"]


# --------------------------------------------------------------------------- refusals
@pytest.fixture
def refused(capsys):
    """The sentence of a command that must be refused in one, with exit code 2."""

    def run(*argv) -> str:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:  # of argparse
            code = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert code == 2, lines
        said = [line for line in lines if "Warning" not in line and not line.startswith("  ")]
        assert len(said) == 1 and said[0].startswith("error: "), lines
        return said[0]

    return run


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--trainer", "MaPel", *DATA], ["MaPel", "MaPLe", "CoCoOpNPT"]),
        ([*MAPLE, "DATASET.NAME", "MiniFlour"], ["MiniFlour", "MiniFlowers"]),
        ([*MAPLE], ["--dataset-config-file"]),
        ([*DATA], ["--trainer"]),
        ([*MAPLE, *DATA, "--config-file", "no/such.yaml"], ["no/such.yaml"]),
        ([*MAPLE, *DATA, "--epochs", "3"], ["--epochs"]),
        ([*MAPLE, *DATA, "OPTIM.EPOCHS", "3"], ["OPTIM.EPOCHS"]),
        ([*MAPLE, *DATA, *QUICK, "MODEL.BACKBONE.NAME", "ViT-Z/1"], ["ViT-Z/1"]),
        ([*MAPLE, *DATA, "--eval-only", "--model-dir", "no/where", *QUICK], ["no/where"]),
        ([*MAPLE, *DATA, *QUICK, "TRAINER.MAPLE.PREC", "fp16"], ["fp16", "fp32"]),
        ([*MAPLE, *DATA, *QUICK, "TRAINER.MAPLE.PREC", "fp8"], ["fp8", "fp32"]),
        ([*MAPLE, *DATA, *QUICK, "TRAINER.MAPLE.PROMPT_DEPTH", "13"], ["PROMPT_DEPTH", "12"]),
        ([*MAPLE, *DATA, "--root", "/nowhere", "DATASET.NAME", "EuroSAT"], ["/nowhere"]),
        ([*MAPLE, *DATA, "DATASET.NAME", "EuroSAT"], ["--root"]),
        ([*MAPLE, *DATA, *QUICK, "OPTIM.NAME", "lion"], ["OPTIM.NAME", "lion"]),
        ([*MAPLE, *DATA, *QUICK, "OPTIM.WARMUP_EPOCH", "2"], ["OPTIM.WARMUP_EPOCH", "MAX_EPOCH"]),
        ([*MAPLE, *DATA, *QUICK, "INPUT.SIZE", "(32, 16)"], ["INPUT.SIZE", "(32, 32)"]),
        ([*MAPLE, *DATA, *QUICK, "INPUT.NO_TRANSFORM", "True"], ["NO_TRANSFORM", "False"]),
        ([*MAPLE, *DATA, *QUICK, "DATALOADER.K_TRANSFORMS", "2"], ["K_TRANSFORMS"]),
        ([*MAPLE, *DATA, *QUICK, "TRAINER.MAPLE.N_CTX", "1000000000"], ["N_CTX", "75"]),
        ([*MAPLE, *DATA, *QUICK, "--resume", "no/run"], ["--resume", "before"]),
        ([*MAPLE, *DATA, "--resume", "no/run", *QUICK], ["--resume", "no/run"]),
        ([*MAPLE, *DATA, *QUICK, "RESUME", "no/run"], ["--resume", "no/run"]),
        ([*MAPLE, *DATA, *QUICK, "OUTPUT_DIR", "a\udcff"], ["a\\udcff", "UTF-8"]),
        (["--seed", "4294967296", *MAPLE, *DATA, *QUICK], ["SEED", "4294967295"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(refused, tmp_path, argv, words):
    said = refused("--output-dir", tmp_path, *argv)
    assert all(word in said for word in words), said


def test_the_program_itself_refuses_in_one_sentence(python, tmp_path):
    done = python("train.py", "--trainer", "MaPel", *DATA, "--output-dir", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: unknown trainer MaPel; there are ")
    assert done.stderr.endswith(" (NPT_TRACEBACK=1 shows the traceback)\n")


def test_a_bug_keeps_its_traceback_and_users_can_ask_for_one(python, tmp_path):
    code = "import sys; from npt import cli; cli.build = lambda cfg: {}['x']; sys.exit(cli.main())"
    done = python("-c", code, *MAPLE, *DATA, "--output-dir", tmp_path)
    assert done.returncode == 1 and "KeyError: 'x'" in done.stderr and "Traceback" in done.stderr
    out = ["--output-dir", str(tmp_path)]
    done = python("train.py", "--trainer", "X", *DATA, *out, NPT_TRACEBACK="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_help_names_the_flags_and_how_to_see_a_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--dataset-config-file" in out and "NPT_TRACEBACK=1" in out


# --------------------------------------------------------------------------- the command npt
def test_the_command_passes_its_arguments_to_a_verb(capsys, tmp_path):
    assert npt_command(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS) and "NPT_TRACEBACK=1" in out
    assert npt_command(["data", "check", "--root", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            sys.exit(npt_command([verb, "--help"]))
        assert stop.value.code == 0 and "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("argv, said", [([], "a verb is missing"), (["fly"], "unknown verb fly")])
def test_the_command_refuses_what_is_no_verb(capsys, argv, said):
    assert npt_command(argv) == 2
    error = capsys.readouterr().err
    assert said in error and "doctor" in error and error.count("\n") == 1


# --------------------------------------------------------------------------- real runs
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short MaPLe training on the base classes, from a folder that is not the repository's."""
    folder = tmp_path_factory.mktemp("trained")
    argv = [*MAPLE, *DATA, "--seed", "1", "--output-dir", "run", *QUICK]
    argv += ["DATASET.SUBSAMPLE_CLASSES", "base"]
    done = subprocess.run(
        [sys.executable, "-m", "npt.cli", *argv], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_a_run_opens_and_ends_as_its_users_tools_expect(trained):
    _, text = trained
    expected = [
        r"^Setting fixed seed: 1$",
        r"^\*{15}\n\*\* Arguments \*\*\n\*{15}$",
        r"^trainer: MaPLe$",
        r"^\*{12}\n\*\* Config \*\*\n\*{12}$",
        r"^Collecting env info \.\.\.$",
        r"^\*\* System info \*\*$",
        r"^Loading trainer: MaPLe$",
        r"^Loading dataset: MiniFlowers$",
        r"^SUBSAMPLE BASE CLASSES!$",
        r"^epoch \[1/1\] batch \[",
        r"^Finish training$",
        r"^\* accuracy: \d+\.\d%$",
    ]
    places = [re.search(pattern, text, re.MULTILINE) for pattern in expected]
    assert all(places), [p for p, m in zip(expected, places, strict=True) if not m]
    assert [m.start() for m in places] == sorted(m.start() for m in places)


def test_a_run_leaves_its_log_result_and_checkpoint(trained):
    folder, text = trained
    log = (folder / "log.txt").read_text()
    assert "Finish training" in log and "** Config **" in log
    result = json.loads((folder / "result.json").read_text())
    assert result["trainer"] == "MaPLe" and result["seed"] == 1
    printed = float(re.findall(r"^\* accuracy: ([\d.]+)%$", text, re.MULTILINE)[-1])
    assert result["results"]["test"]["accuracy"] == pytest.approx(printed, abs=0.051)
    assert (folder / "MultiModalPromptLearner" / "checkpoint").is_file()


def test_a_warning_is_in_the_log_of_every_run(tmp_path, capsys, recwarn):
    for run in ("one", "two"):
        args = parse_args(["--output-dir", str(tmp_path / run), "--trainer", "CoOp", *DATA])
        with session(args, setup_cfg(args)):
            warnings.warn("this split was made here", stacklevel=1)
        log = (tmp_path / run / "log.txt").read_text()
        assert log.endswith("\nUserWarning: this split was made here\n")
    assert len(recwarn) == 2  # and it is shown as it would have been


def test_evaluation_only_gives_the_trained_figures_again(trained, tmp_path, capsys):
    folder, _ = trained
    argv = [*MAPLE, *DATA, "--seed", "1", "--output-dir", str(tmp_path), "--eval-only"]
    argv += ["--model-dir", str(folder), *QUICK, "DATASET.SUBSAMPLE_CLASSES", "base"]
    console = sys.stdout
    assert cli.main(argv) == 0
    assert sys.stdout is console  # the log let go of it
    now, then = (json.loads((f / "result.json").read_text()) for f in (tmp_path, folder))
    assert now["results"]["test"]["accuracy"] == then["results"]["test"]["accuracy"]
    assert now["results"]["test"]["lcd"] == pytest.approx(then["results"]["test"]["lcd"], abs=1e-6)


def test_no_train_builds_and_stops(tmp_path, capsys):
    argv = [*MAPLE, *DATA, "--output-dir", str(tmp_path), "--no-train", *QUICK]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "Loading trainer: MaPLe" in out and "epoch [" not in out


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path, capsys):
    """Same trainer, deeper prompts: parameters that the checkpoint lacks."""
    folder, _ = trained
    argv = [*MAPLE, *DATA, "--output-dir", str(tmp_path), "--eval-only", "--model-dir", str(folder)]
    assert cli.main([*argv, *QUICK, "TRAINER.MAPLE.N_CTX", "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "ctx" in error and error.count("\n") == 1


def test_a_checkpoint_of_another_class_list_is_refused(tmp_path, capsys):
    """Class-specific contexts belong to their classes."""
    coop = ["--trainer", "CoOp", "--config-file", "configs/trainers/CoOp/tiny.yaml", *DATA]
    specific = ["TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", ""]
    opts = [*QUICK, *specific, "DATASET.SUBSAMPLE_CLASSES"]
    base, new = str(tmp_path / "base"), str(tmp_path / "new")
    assert cli.main([*coop, "--output-dir", base, *opts, "base"]) == 0
    capsys.readouterr()
    argv = [*coop, "--output-dir", new, "--eval-only", "--model-dir", base, *opts, "new"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_an_unreadable_image_is_named(refused, tmp_path):
    """The mini data set under a root of its own, its test images overwritten with text.

    In this process, and in one that only loads data, whose errors arrive as printed tracebacks.
    """
    argv = [*MAPLE, *DATA, "--root", str(tmp_path / "root"), "--output-dir", str(tmp_path / "out")]
    assert cli.main([*argv, "--no-train", *QUICK]) == 0
    images = list((tmp_path / "root").rglob("*test*.png"))
    assert images
    for image in images:
        image.write_text("no image")
    for workers in ("0", "1"):
        said = refused(*argv, "--eval-only", *QUICK, *WORKERS, workers)
        assert any(image.name in said for image in images), said
