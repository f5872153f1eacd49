"""The per-run scripts in scripts/npt: their folders, what they pass on, what they refuse."""

import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "scripts" / "npt"
SCRIPTS = sorted(path.name for path in HOME.glob("[a-z]*.sh"))
VARIABLES = ("TRAINER", "CFG", "TAU", "SHOTS", "SOURCE", "DATA", "OUT")
SHORT = ("OPTIM.MAX_EPOCH", 1)
# The lines after which the parsers of CoOp and of MaPLe read results, of trainings and of tests.
PARSERS = {"CoOp": ("Finish training", "=> result"), "MaPLe": ("Finished training", "=> result")}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Scripts:
    """Calls the scripts as a user does, in an environment with this Python and with OUT set."""

    def __init__(self, home: Path, python: str):
        self.home, self.out = home, home / "out put"
        program = home / "environment" / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{python}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**kept, "VIRTUAL_ENV": str(program.parent.parent), "PATH": path}
        self.environment |= {"OUT": str(self.out), "OMP_NUM_THREADS": "1"}

    def start(self, script: str, *args: object, **variables: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", HOME / script, *map(str, args)],
            env=self.environment | {name: str(value) for name, value in variables.items()},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, script: str, *args: object, **variables: object):
        process = self.start(script, *args, **variables)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def words(self, script: str, *args: object, **variables: object) -> list[str]:
        """What train.py is called with, where `dry` stands for Python."""
        done = self(script, *args, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def refused(self, script: str, *args: object, **variables: object) -> str:
        """The sentence of an error that the user can correct."""
        done = self(script, *args, **variables)
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line.removeprefix("error: ")


@pytest.fixture
def dry(tmp_path):
    """A Python that has every package, and only prints the words for train.py."""
    return Scripts(
        tmp_path,
        'case "$*" in *_train.py*) shift; printf "%s\\n" "$@" ;; "-m pip"*) exit 3 ;; esac',
    )


@pytest.fixture
def real(tmp_path):
    return Scripts(tmp_path, f'exec {sys.executable} "$@"')


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def end(folder: Path, finished: str = "true") -> None:
    """Make a folder that a training has left; finished: as in JSON."""
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("epoch [1/5] batch [1/5]\n")
    (folder / "result.json").write_text(f'{{\n "task": "training",\n "finished": {finished}\n}}')


# --------------------------------------------------------------------------- words and folders
@pytest.mark.parametrize("script", SCRIPTS)
def test_usage(dry, script):
    subprocess.run(["bash", "-n", HOME / script], check=True)
    text = "\n".join(dry.words(script, "--help"))
    assert f"bash scripts/npt/{script} " in text and "Output: output/" in text
    assert all(re.search(rf"^  {name} ", text, re.M) for name in VARIABLES)
    assert "source" not in text
    opening = (HOME / script).read_text().splitlines()[1:3]
    assert all(line.startswith("# ") for line in opening)


MAPLE, TRANSFER = "vit_b16_c2_ep5_batch4_2ctx", "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"
COCOOP = "vit_b16_c4_ep10_batch1_ctxv1"


@pytest.mark.parametrize(
    "script, args, variables, folder, config",
    [
        (
            *("base2new_train.sh", ("eurosat", 2), {}),
            f"base2new/train_base/eurosat/shots_16/MaPLeNPT/{MAPLE}/seed2",
            f"MaPLeNPT/{MAPLE}",
        ),
        (
            *("base2new_train.sh", ("eurosat", 2), {"TRAINER": "CoCoOp", "SHOTS": 4, "TAU": 0.05}),
            f"base2new/train_base/eurosat/shots_4/CoCoOp/{COCOOP}_tau0.05/seed2",
            f"CoCoOp/{COCOOP}",
        ),
        (
            *("base2new_train.sh", ("mini_land", 1), {"CFG": "tiny", "TRAINER": "CoCoOpNPT"}),
            "base2new/train_base/mini_land/shots_16/CoCoOpNPT/tiny/seed1",
            "CoCoOp/tiny",
        ),
        (
            *("base2new_test.sh", ("dtd", 1), {"TRAINER": "ZeroshotCLIP"}),
            "base2new/test_new/dtd/shots_16/ZeroshotCLIP/vit_b16/seed1",
            "ZeroshotCLIP/vit_b16",
        ),
        (
            *("xd_train.sh", (3,), {"TAU": 0.05}),
            f"imagenet/MaPLeNPT/{TRANSFER}_tau0.05_16shots/seed3",
            f"MaPLeNPT/{TRANSFER}",
        ),
        (
            *("xd_train.sh", (3,), {"TRAINER": "MaPLe"}),
            f"imagenet/MaPLe/{TRANSFER}_16shots/seed3",
            f"MaPLe/{TRANSFER}",
        ),
        (
            *("xd_train.sh", (3,), {"TRAINER": "CoCoOpNPT"}),
            "imagenet/CoCoOpNPT/vit_b16_c4_ep5_batch4_cross_datasets_16shots/seed3",
            "CoCoOpNPT/vit_b16_c4_ep5_batch4_cross_datasets",
        ),
        (
            *("xd_train.sh", (3,), {"SOURCE": "mini_net"}),
            "mini_net/MaPLeNPT/tiny_16shots/seed3",
            "MaPLe/tiny",
        ),
        (
            *("xd_test.sh", ("dtd", 1), {"TRAINER": "ZeroshotCLIP"}),
            "evaluation/ZeroshotCLIP/vit_b16_16shots/dtd/seed1",
            "ZeroshotCLIP/vit_b16",
        ),
        (
            *("xd_test.sh", ("dtd", 1), {"TRAINER": "ZeroshotCLIP", "SOURCE": "eurosat"}),
            "evaluation_from_eurosat/ZeroshotCLIP/vit_b16_16shots/dtd/seed1",
            "ZeroshotCLIP/vit_b16",
        ),
        (
            *("dg_test.sh", ("imagenetv2", 1), {"TRAINER": "ZeroshotCLIP"}),
            "evaluation/ZeroshotCLIP/vit_b16_16shots/imagenetv2/seed1",
            "ZeroshotCLIP/vit_b16",
        ),
        (
            *("few_shot.sh", ("dtd", 8, 1), {"TRAINER": "CoOp", "SHOTS": 4}),
            "dtd/CoOp/vit_b16_ep50_ctxv1_8shots/seed1",
            "CoOp/vit_b16_ep50_ctxv1",
        ),
    ],
)
def test_folders_and_configurations(dry, script, args, variables, folder, config):
    words = dry.words(script, *args, **{"DATA": dry.home, **variables})
    assert flag(words, "--output-dir") == str(dry.out / folder)
    assert flag(words, "--config-file") == f"configs/trainers/{config}.yaml"
    assert (ROOT / flag(words, "--config-file")).is_file()
    assert (ROOT / flag(words, "--dataset-config-file")).is_file()
    assert flag(words, "--root") == str(dry.home)
    assert flag(words, "--seed") == re.search(r"seed(\d+)", folder)[1]
    shots = flag(words, "DATASET.NUM_SHOTS")
    assert f"/shots_{shots}/" in folder or f"_{shots}shots/" in folder
    classes = {"base2new_train.sh": "base", "base2new_test.sh": "new"}.get(script, "all")
    assert flag(words, "DATASET.SUBSAMPLE_CLASSES") == classes
    assert ("--eval-only" in words) == (flag(words, "--trainer") == "ZeroshotCLIP")


@pytest.mark.parametrize("tau", ["0.05", ".05", "5e-2", "0.0500", "50.0E-3"])
def test_a_ratio_has_one_folder_however_it_is_written(dry, tau):
    words = dry.words("base2new_train.sh", "mini_land", 1, TAU=tau)
    assert Path(flag(words, "--output-dir")).parent.name == "tiny_tau0.05"
    assert flag(words, "DATASET.IMBALANCE_RATIO") == "0.05"


@pytest.mark.parametrize("tau", ["1", "1.0", "1.", "1e0", ""])
def test_the_folder_of_balanced_training_has_no_ratio(dry, tau):
    words = dry.words("base2new_train.sh", "mini_land", 1, TAU=tau)
    assert Path(flag(words, "--output-dir")).parent.name == "tiny"


def test_flags_and_pairs_are_passed_on_with_their_spaces(dry):
    pairs = ["TRAINER.MAPLE.CTX_INIT", "a picture of a", "OPTIM.MAX_EPOCH", "1"]
    words = dry.words("base2new_train.sh", "mini_land", 1, "--overwrite", *pairs)
    assert words[-4:] == pairs and "--root" not in words
    assert words.index("--overwrite") < words.index("DATASET.NUM_SHOTS")


def test_the_model_of_a_test_is_that_of_its_training(dry):
    for train, test, args in (
        ("base2new_train.sh", "base2new_test.sh", ("mini_land", 1)),
        ("xd_train.sh", "xd_test.sh", (1,)),
        ("xd_train.sh", "dg_test.sh", (1,)),
    ):
        settings = {"TAU": 0.01, "SOURCE": "mini_net"}
        folder = Path(flag(dry.words(train, *args, **settings), "--output-dir"))
        data = {"xd_test.sh": ["mini_land"], "dg_test.sh": ["mini_net_a"]}.get(test, [])
        if not folder.exists():
            end(folder)
        words = dry.words(test, *data, *args, **settings)
        assert flag(words, "--model-dir") == str(folder) and "--eval-only" in words
        assert "--load-epoch" not in words and flag(words, "--output-dir") != str(folder)


# --------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    "script, args, variables, words",
    [
        ("base2new_train.sh", (), {}, ["no DATASET", "base2new_train.sh DATASET SEED"]),
        ("base2new_train.sh", ("mini_land",), {}, ["no SEED"]),
        ("base2new_train.sh", ("mini_land", "x"), {}, ["SEED is 'x'", "whole number"]),
        ("base2new_train.sh", ("mini_land", "01"), {}, ["SEED is '01'"]),
        ("base2new_train.sh", ("mini_lamb", 1), {}, ["'mini_lamb'", "mini_land"]),
        ("base2new_train.sh", ("../x", 1), {}, ["'../x'"]),
        ("base2new_train.sh", ("eurosat", 1), {}, ["DATA is not set", "eurosat"]),
        ("base2new_train.sh", ("eurosat", 1), {"DATA": "/gone"}, ["'/gone'", "correct DATA"]),
        ("base2new_train.sh", ("mini_land", 1), {"TRAINER": "Maple"}, ["'Maple'", "MaPLe,"]),
        ("base2new_train.sh", ("mini_land", 1), {"TRAINER": "NPT"}, ["'NPT'"]),
        ("base2new_train.sh", ("mini_land", 1), {"CFG": "tyni"}, ["'tyni'", "tiny", MAPLE]),
        ("base2new_train.sh", ("mini_land", 1), {"TAU": "0"}, ["TAU is '0'", "above 0"]),
        ("base2new_train.sh", ("mini_land", 1), {"TAU": "1.5"}, ["TAU is '1.5'"]),
        ("base2new_train.sh", ("mini_land", 1), {"TAU": "0.5x"}, ["TAU is '0.5x'"]),
        ("base2new_train.sh", ("mini_land", 1), {"SHOTS": "many"}, ["SHOTS is 'many'"]),
        ("base2new_train.sh", ("mini_land", 1, "DATASET.NUM_SHOTS", 4), {}, ["set by SHOTS"]),
        ("few_shot.sh", ("mini_land", 1), {}, ["no SEED", "DATASET SHOTS SEED"]),
        ("xd_train.sh", (1,), {"SOURCE": "gone"}, ["'gone'"]),
        ("xd_train.sh", (1,), {}, ["DATA is not set", "imagenet"]),
        ("dg_test.sh", ("mini_land", 1), {}, ["'mini_land'", "imagenet_r", "xd_test.sh"]),
    ],
)
def test_bad_input_is_one_sentence(dry, script, args, variables, words):
    sentence = dry.refused(script, *args, **variables)
    assert all(word in sentence for word in words), sentence


def test_a_test_needs_a_training_that_has_ended(dry):
    settings = {"TAU": 0.05, "SHOTS": 2}
    folder = dry.out / "base2new/train_base/mini_land/shots_2/MaPLeNPT/tiny_tau0.05/seed1"
    command = "bash scripts/npt/base2new_train.sh mini_land 1"
    sentence = dry.refused("base2new_test.sh", "mini_land", 1, **settings)
    assert "no training in" in sentence and f"TAU=0.05 SHOTS=2 OUT={dry.home}" in sentence
    assert sentence.endswith(command)
    end(folder, finished="false")
    sentence = dry.refused("base2new_test.sh", "mini_land", 1, **settings)
    assert f"{folder} has not ended" in sentence and sentence.endswith(command)


@pytest.mark.parametrize("last, ended", [("Finished training", True), ("epoch [4/5]", False)])
def test_a_model_of_a_repository_of_the_family_is_known_by_its_log(dry, last, ended):
    folder = dry.out / "mini_net" / "MaPLeNPT" / "tiny_16shots" / "seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(f"epoch [1/5]\n{last}\n")
    done = dry("xd_test.sh", "mini_land", 1, SOURCE="mini_net")
    assert (done.returncode == 0) == ended


# --------------------------------------------------------------------------- logs
def read_as(parser: str, folder: Path, test: bool = False) -> list[float]:
    """The accuracies that a parser of the family finds in the log.txt of each seed's folder."""
    start = PARSERS[parser][test]
    found = []
    for seed in sorted(folder.iterdir()):
        started, last = False, None
        for line in (seed / "log.txt").read_text().splitlines():
            started = started or line.strip() == start
            match = re.search(r"\* accuracy: ([\d.]+)%", line)
            last = float(match[1]) if started and match else last
        found += [] if last is None else [last]
    return found


def read_with_ours(folder: Path, *flags: str) -> list[float]:
    command = [sys.executable, ROOT / "scripts" / "parse_test_res.py", folder, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(x) for x in re.findall(r"^file: .* accuracy: ([\d.]+)%$", done.stdout, re.M)]


def accuracy(text: str) -> float:
    return float(re.findall(r"^\* accuracy: ([\d.]+)%$", text, re.M)[-1])


def printing(*lines: str, base: type = object) -> type:
    """A class whose `after_train` prints lines."""
    code = "".join(f"    print({line!r})\n" for line in lines)
    space: dict = {}
    exec(f"def after_train(self):\n{code or '    pass'}", space)
    return type("Trainer", (base,), {"after_train": space["after_train"]})


@pytest.mark.parametrize(
    "trainer, missing",
    [
        (printing("Finish training"), ["Finished training"]),
        (printing("Finished training"), ["Finish training"]),
        (printing("Finish training", "Finished training"), []),
        (printing("other", base=printing("Finish training")), ["Finished training"]),
        (printing(), ["Finish training", "Finished training"]),
        (object, ["Finish training", "Finished training"]),
    ],
)
def test_an_installed_engine_lacks_the_lines_that_it_does_not_print(trainer, missing):
    from npt.measure import end_lines_missing

    assert end_lines_missing(trainer) == missing


@pytest.fixture
def wrapper():
    spec = importlib.util.spec_from_file_location("train_for_scripts", HOME / "_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("code, added", [(0, True), (None, True), (75, False), (2, False)])
def test_log_txt_gets_the_lines_of_a_later_start_that_ends(
    wrapper, tmp_path, monkeypatch, code, added
):
    for name, text in (("log.txt", "one\n"), ("log.txt-2026-01-01-00-00-00", "two\n")):
        (tmp_path / name).write_text(text)

    def start(*args, **kwargs):
        (tmp_path / "log.txt-2026-01-02-00-00-00").write_text("three\n")
        raise SystemExit(code)

    monkeypatch.setattr(wrapper.runpy, "run_path", start)
    with pytest.raises(SystemExit) as stop:
        wrapper.main(tmp_path)
    assert stop.value.code == code
    assert (tmp_path / "log.txt").read_text() == ("one\nthree\n" if added else "one\n")


# --------------------------------------------------------------------------- runs
def tree(folder: Path) -> set[str]:
    """The folders of seeds in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("seed*")}


@pytest.mark.long
def test_base_to_new_is_read_by_every_parser(real):
    """After a start that fails, a training, the same again, and its test."""
    settings = {"TAU": ".05", "SHOTS": 2}
    failed = real("base2new_train.sh", "mini_shapes", 1, *SHORT, "INPUT.SIZE", "(9, 9)", **settings)
    assert failed.returncode == 2 and "INPUT.SIZE" in failed.stderr.splitlines()[-1]
    first, again = (
        real("base2new_train.sh", "mini_shapes", 1, *SHORT, **settings) for _ in range(2)
    )
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "epoch [1/1]" in first.stdout and "epoch [1/1]" not in again.stdout
    test = real("base2new_test.sh", "mini_shapes", 1, *SHORT, **settings)
    assert test.returncode == 0, test.stderr
    place = "mini_shapes/shots_2/MaPLeNPT/tiny_tau0.05/seed1"
    assert tree(real.out / "base2new") == {f"train_base/{place}", f"test_new/{place}"}
    base, new = ((real.out / "base2new" / x / place).parent for x in ("train_base", "test_new"))
    assert accuracy(first.stdout) == accuracy(again.stdout) != accuracy(test.stdout)
    for parser in PARSERS:
        assert read_as(parser, base) == [accuracy(first.stdout)]
        assert read_as(parser, new, test=True) == [accuracy(test.stdout)]
    assert read_with_ours(base) == [accuracy(first.stdout)]
    assert read_with_ours(new, "--test-log") == [accuracy(test.stdout)]

    other = real("base2new_train.sh", "mini_shapes", 1, "OPTIM.MAX_EPOCH", 2, **settings)
    assert other.returncode == 2 and "OPTIM.MAX_EPOCH" in other.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_stopped_training_is_not_tested_and_goes_on(real):
    long = ("OPTIM.MAX_EPOCH", 60)
    settings = {"SHOTS": 2, "TRAINER": "MaPLe"}
    folder = real.out / "base2new/train_base/mini_shapes/shots_2/MaPLe/tiny/seed1"
    with real.start("base2new_train.sh", "mini_shapes", 1, *long, **settings) as process:
        log = folder / "log.txt"
        while process.poll() is None and not (log.exists() and "epoch [2/" in log.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 75  # as that of train.py: run it again
    assert "has not ended" in real.refused("base2new_test.sh", "mini_shapes", 1, **settings)
    done = real("base2new_train.sh", "mini_shapes", 1, *long, **settings)
    assert done.returncode == 0, done.stderr
    assert "epoch [1/60]" not in done.stdout and "epoch [60/60]" in done.stdout
    for parser in PARSERS:
        assert read_as(parser, folder.parent) == [accuracy(done.stdout)]
    assert read_with_ours(folder.parent) == [accuracy(done.stdout)]


@pytest.mark.long
def test_transfer_on_the_mini_suite(real):
    settings = {"SHOTS": 2, "SOURCE": "mini_net", "CFG": "tiny"}
    runs = [
        real("xd_train.sh", 1, *SHORT, **settings),
        real("xd_test.sh", "mini_land", 1, *SHORT, **settings),
        real("dg_test.sh", "mini_net_a", 1, *SHORT, **settings),
    ]
    assert not any(run.returncode for run in runs), [run.stderr for run in runs]
    name = "MaPLeNPT/tiny_2shots"
    tests = {f"evaluation/{name}/{data}/seed1" for data in ("mini_land", "mini_net_a")}
    assert tree(real.out) == {f"mini_net/{name}/seed1", *tests}
    found = [accuracy(run.stdout) for run in runs]
    for parser in PARSERS:
        assert read_as(parser, real.out / "mini_net" / name) == found[:1]
        for test, value in zip(("mini_land", "mini_net_a"), found[1:], strict=True):
            assert read_as(parser, real.out / "evaluation" / name / test, test=True) == [value]
    assert read_with_ours(real.out / "evaluation" / name, "--multi-exp", "--test-log") == found[1:]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["CoCoOpNPT", "ZeroshotCLIP"])
def test_few_shot(real, trainer):
    done = real("few_shot.sh", "mini_land", 1, 2, *SHORT, TRAINER=trainer, CFG="tiny")
    assert done.returncode == 0, done.stderr
    assert tree(real.out) == {f"mini_land/{trainer}/tiny_1shots/seed2"}
    folder = real.out / "mini_land" / trainer / "tiny_1shots"
    trained = trainer != "ZeroshotCLIP"
    for parser in PARSERS:
        assert read_as(parser, folder, test=not trained) == [accuracy(done.stdout)]
    assert ("is not trained" in done.stderr) != trained


# --------------------------------------------------------------------------- configurations
CONFIGS = ROOT / "configs" / "trainers"
OF_THE_PAPER = [
    *sorted((CONFIGS / "CoCoOpNPT").glob("*")),
    *sorted((CONFIGS / "MaPLeNPT").glob("*")),
    CONFIGS / "MaPLe" / f"{MAPLE}.yaml",
    CONFIGS / "MaPLe" / f"{TRANSFER}.yaml",
    CONFIGS / "CoCoOp" / f"{COCOOP}.yaml",
]


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_configuration_of_the_paper_opens_with_command_time_and_figure(dry, path):
    lines = path.read_text().partition("DATALOADER")[0].splitlines()
    text = " ".join(line.removeprefix("# ") for line in lines)
    assert all(line.startswith("# ") for line in lines)
    assert "NVIDIA A100 40 GB, estimated, not measured" in text
    assert re.search(r"Expected.* \d\d\.\d\d .*paper", text)
    commands = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    assert commands
    for command in commands:  # each leads to this file
        words = command.split()
        place = words.index("bash")
        settings = {**dict(word.split("=") for word in words[:place]), "DATA": dry.home}
        name, *args = words[place + 1 :]
        name = Path(name).name
        if name.endswith("_test.sh"):
            train = name.replace("dg_", "xd_").replace("_test", "_train")
            known = args if train.startswith("base2new") else args[1:]
            folder = Path(flag(dry.words(train, *known, **settings), "--output-dir"))
            if not folder.exists():
                end(folder)
        words = dry.words(name, *args, **settings)
        assert flag(words, "--config-file") == path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("trainer, name, depth", [
    ("MaPLeNPT", TRANSFER, 3),
    ("MaPLeNPT", MAPLE, 9),
    ("CoCoOpNPT", "vit_b16_c4_ep5_batch4", None),
    ("CoCoOpNPT", "vit_b16_c4_ep5_batch4_cross_datasets", None),
])  # fmt: skip
def test_the_settings_of_the_paper(trainer, name, depth):
    cfg = yaml.safe_load((CONFIGS / trainer / f"{name}.yaml").read_text())
    assert (cfg["OPTIM"]["MAX_EPOCH"], cfg["OPTIM"]["LR"]) == (5, 0.0035)
    assert cfg["DATALOADER"]["TRAIN_X"]["BATCH_SIZE"] == 4
    assert cfg["TRAINER"]["NPT"] == {"W1": 0.3, "W2": 0.8}
    assert cfg["TRAINER"].get("MAPLE", {}).get("PROMPT_DEPTH") == depth
