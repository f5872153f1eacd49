"""The command line: where values come from, what a run prints and leaves, what errors say."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from npt import cli
from npt.errors import NPTError

DATA = ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
MAPLE = ["--trainer", "MaPLe", "--config-file", "configs/trainers/MaPLe/tiny.yaml"]
QUICK = """
    DATALOADER.NUM_WORKERS 0  DATASET.NUM_SHOTS 2  OPTIM.MAX_EPOCH 1  USE_CUDA False
"""
QUICK = QUICK.split()
WORKERS = ["DATALOADER.NUM_WORKERS"]


def setup(*argv: str):
    return cli.setup_cfg(cli.parse_args(list(argv)))


# --------------------------------------------------------------------------- configuration
def test_later_sources_win(tmp_path):
    data, trainer = tmp_path / "data.yaml", tmp_path / "trainer.yaml"
    data.write_text("DATASET: {NAME: MiniFlowers, NUM_SHOTS: 1}\nOPTIM: {LR: 1, MAX_EPOCH: 3}\n")
    trainer.write_text("OPTIM: {LR: 2, STEPSIZE: [7]}\nSEED: 5\nINPUT: {SIZE: [32, 32]}\n")
    files = ["--dataset-config-file", str(data), "--config-file", str(trainer)]
    cfg = setup(*files, "--trainer", "CoOp", "OPTIM.LR", "3", "DATASET.NUM_SHOTS", "4")
    assert cfg.OPTIM.LR == 3.0 and isinstance(cfg.OPTIM.LR, float)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.STEPSIZE, cfg.DATASET.NUM_SHOTS) == (3, (7,), 4)
    assert (cfg.SEED, cfg.INPUT.SIZE, cfg.TRAINER.NAME) == (5, (32, 32), "CoOp")
    with pytest.raises(AttributeError):
        cfg.SEED = 1  # frozen
    assert setup(*files, "--trainer", "CoOp", "--seed", "0").SEED == 0


def test_flags_reach_their_keys():
    flags = """
        --root /data  --output-dir out  --resume old  --seed 7  --source-domains a b
        --target-domains c  --transforms normalize  --backbone tiny  --head mlp
        --trainer CoOp  DATASET.NAME Any
    """
    cfg = setup(*flags.split())
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED) == ("/data", "out", "old", 7)
    assert tuple(cfg.DATASET.SOURCE_DOMAINS) == ("a", "b")
    assert tuple(cfg.DATASET.TARGET_DOMAINS) == ("c",)
    assert tuple(cfg.INPUT.TRANSFORMS) == ("normalize",)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("tiny", "mlp")


def test_text_stays_text():
    cfg = setup("--trainer", "CoOp", "DATASET.NAME", "16", "TRAINER.COOP.CTX_INIT", "a photo of a")
    assert (cfg.DATASET.NAME, cfg.TRAINER.COOP.CTX_INIT) == ("16", "a photo of a")


def test_installed_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = cli.find_config("configs/trainers/MaPLe/tiny.yaml")
    assert installed.is_file()
    assert cli.find_config("trainers/MaPLe/tiny.yaml") == installed
    own = tmp_path / "configs" / "trainers" / "MaPLe" / "tiny.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 1\n")
    assert cli.find_config("configs/trainers/MaPLe/tiny.yaml").resolve() == own


@pytest.mark.parametrize(
    "pairs, words",
    [
        (["TRAINER.NPT.W3", "1"], ["TRAINER.NPT.W3", "did you mean TRAINER.NPT.W"]),
        (["OPTIM.EPOCHS", "1"], ["OPTIM.EPOCHS"]),
        (["NUM_SHOTS", "1"], ["DATASET.NUM_SHOTS"]),
        (["OPTIM.LR.X", "1"], ["OPTIM.LR.X"]),
        (["OPTIM", "1"], ["OPTIM", "section"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "a number", "fast"]),
        (["OPTIM.MAX_EPOCH", "1.5"], ["OPTIM.MAX_EPOCH", "a whole number", "1.5"]),
        (["USE_CUDA", "1"], ["USE_CUDA", "True or False"]),
        (["INPUT.SIZE", "32"], ["INPUT.SIZE", "a list"]),
        (["OPTIM.LR"], ["OPTIM.LR", "no value"]),
        (["OPTIM.LR", "1", "--seed", "1"], ["--seed", "before"]),
        (["TRAINER.NPT.W1", "-1"], ["TRAINER.NPT.W1"]),
        (["DATASET.IMBALANCE_RATIO", "2"], ["DATASET.IMBALANCE_RATIO"]),
    ],
)
def test_a_wrong_pair_is_named(pairs, words):
    with pytest.raises(NPTError) as error:
        setup("--trainer", "CoOp", "DATASET.NAME", "Any", *pairs)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "content, words",
    [
        ("OPTIM: {RL: 1}", ["OPTIM.RL", "did you mean OPTIM.LR"]),
        ("OPTIM: 3", ["OPTIM", "section"]),
        ("OPTIM: {LR: [1]}", ["OPTIM.LR", "a number"]),
        ("OPTIM: {LR: 1", ["not valid yaml"]),
        ("- 1", ["no config keys"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    file = tmp_path / "some.yaml"
    file.write_text(content)
    with pytest.raises(NPTError) as error:
        setup("--trainer", "CoOp", "--config-file", str(file), "DATASET.NAME", "Any")
    assert all(word in str(error.value) for word in [*words, "some.yaml"]), error.value


# --------------------------------------------------------------------------- errors
def test_only_errors_raised_on_purpose_become_sentences():
    def caught(function):
        try:
            function()
        except Exception as error:
            return cli.sentence(error)

    wrong_key = caught(lambda: setup("--trainer", "X", "OPTIM.X", "1"))
    assert wrong_key.startswith("unknown config key")
    assert (
        caught(Path("/nowhere/at/all").read_text) == "No such file or directory: '/nowhere/at/all'"
    )
    assert caught(lambda: {}["key"]) is None
    assert caught(lambda: int("x")) is None
    assert caught(lambda: cli._typed(1, 2, "k")) is None  # a TypeError inside our own code


def test_errors_of_data_loading_processes_are_judged_alike():
    traceback = (
        "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/x/torch/worker.py", line 1, in loop\n    data = fetch()\n'
        '  File "/x/{1}/data.py", line 9, in read\n    {2}\n{3}\n'
    )

    def said(*parts):
        return cli.sentence(OSError(traceback.format(*parts)))

    raised = 'raise OSError(f"{path} is cut short")'
    assert said("OSError", "dassl", raised, "OSError: a.png is cut short") == "a.png is cut short"
    assert said("NPTError", "x", "f()", "npt.errors.NPTError: no\n  good") == "no good"
    errno = "FileNotFoundError: [Errno 2] No such file or directory: 'a.png'"
    assert said("FileNotFoundError", "PIL", "open(f)", errno).endswith("directory: 'a.png'")
    assert said("KeyError", "dassl", 'item["img"]', "KeyError: 'img'") is None


def refused(done: subprocess.CompletedProcess) -> str:
    """The sentence of a run that must have been refused in one."""
    assert done.returncode == 2, done.stderr[-2000:] + done.stdout[-2000:]
    lines = [x for x in done.stderr.splitlines() if "Warning" not in x and not x.startswith("  ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


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
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(python, tmp_path, argv, words):
    out = ["--output-dir", str(tmp_path)]
    said = refused(python("train.py", *out, *argv))
    assert all(word in said for word in words), said


def test_a_bug_keeps_its_traceback_and_users_can_ask_for_one(python, tmp_path):
    code = "import sys; from npt import cli; cli.build = lambda cfg: {}['x']; sys.exit(cli.main())"
    out = ["--output-dir", str(tmp_path)]
    done = python("-c", code, *MAPLE, *DATA, *out)
    assert done.returncode == 1 and "KeyError: 'x'" in done.stderr and "Traceback" in done.stderr
    done = python("train.py", "--trainer", "X", *DATA, *out, NPT_TRACEBACK="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


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
        args = cli.parse_args(["--output-dir", str(tmp_path / run), "--trainer", "CoOp", *DATA])
        with cli.session(args, cli.setup_cfg(args)):
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


def test_an_unreadable_image_is_named(python, tmp_path):
    """The mini data set under a root of its own, its test images overwritten with text.

    In this process, and in one that only loads data, whose errors arrive as printed tracebacks.
    """
    argv = [*MAPLE, *DATA, "--root", tmp_path / "root", "--output-dir", tmp_path / "out"]
    assert cli.main([*map(str, argv), "--no-train", *QUICK]) == 0
    images = list((tmp_path / "root").rglob("*test*.png"))
    assert images
    for image in images:
        image.write_text("no image")
    for workers in ("0", "1"):
        said = refused(python("train.py", *argv, "--eval-only", *QUICK, *WORKERS, workers))
        assert any(image.name in said for image in images), said


def test_a_missing_root_is_named(python, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import sys\nimport npt\nfrom dassl.data.datasets import DATASET_REGISTRY\n"
        "from npt.cli import main\nfrom npt.datasets.base import SplitDataset\n"
        "Own = type('Own', (SplitDataset,), {'folder': 'own'})\nDATASET_REGISTRY.register(Own)\n"
        "sys.exit(main())\n"
    )
    out = ["--output-dir", tmp_path / "out"]
    said = refused(python(file, *MAPLE, *out, *QUICK, "DATASET.NAME", "Own"))
    assert "--root" in said
    said = refused(python(file, *MAPLE, *out, "--root", "/nowhere", *QUICK, "DATASET.NAME", "Own"))
    assert "/nowhere" in said
