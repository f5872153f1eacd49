"""Commands that only read command lines, configs, lists and records do not wait for torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "experiments"))
HEAVY = ("torch", "torchvision", "matplotlib", "pandas", "scipy", "sklearn")
OURS = "--trainer MaPLeNPT --dataset-config-file configs/datasets/mini_flowers.yaml"

# In one process: who imports something heavy fails, and so do those after it.
PROGRAM = f"""
import contextlib, io, shlex, sys

def say(*args):
    "Run a command of train.py or npt, and print what it has imported."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            if args[0] == "train.py":
                from npt.cli import main
            else:
                from npt.__main__ import main
            code = main(args[1:])
        except SystemExit as end:
            code = end.code
    found = [name for name in {HEAVY} if name in sys.modules]
    print(code, ",".join(found) or "-", shlex.join(args))

for line in sys.stdin.read().splitlines():
    say(*shlex.split(line))
"""

CODES = {  # command -> its exit code
    "npt --version": 0,
    "npt --help": 0,
    "npt nonsense": 2,
    **{f"npt {verb} --help": 0 for verb in ("train", "test", "predict", "view", "export")},
    **{f"npt {verb} --help": 0 for verb in ("compare", "completion", "data", "run", "doctor")},
    **{f"npt {verb} nowhere": 2 for verb in ("test", "view", "run", "train")},
    "npt completion bash": 0,
    "npt predict nowhere x.jpg": 2,
    "npt export nowhere x": 2,
    "npt compare nowhere other": 2,
    "npt data check --root /nowhere": 2,
    "npt data check EuroSAT --root tests": 1,
    "npt data show Nonsense": 2,
    "npt data prepare Nonsense --help": 0,
    "npt experiments table --help": 0,
    "npt experiments status OUT": 0,
    "npt experiments status /nowhere": 2,
    "npt experiments features /nowhere": 2,
    "npt experiments figure /nowhere": 2,
    "npt experiments run /nowhere.yaml --out none": 2,
    "npt experiments run configs/experiments/mini/demo.yaml --out none seeds x": 2,
    "npt experiments run configs/experiments/mini/demo.yaml --out none --time 3:00:00": 2,
    "npt experiments estimate /nowhere.yaml --out none": 2,
    "npt experiments gradients --plot x.png": 2,
    "npt experiments reproduce nonsense --suite mini": 2,
    "npt experiments reproduce table1 --suite mini --dry-run --jobs 2 --out none": 0,
    "npt experiments reproduce table1 --suite paper --dry-run --jobs 2 --out none": 0,
    "train.py --help": 0,
    "train.py --nonsense": 2,
    "train.py": 2,
    "train.py --trainer MaPLeNPT": 2,
    f"train.py {OURS} NO.KEY 3": 2,
    f"train.py {OURS} OPTIM.LR x": 2,
    f"train.py {OURS} --config-file /nowhere.yaml": 2,
    f"train.py {OURS} --eval-only --overwrite": 2,
}
WITH_PANDAS = {
    "npt experiments table OUT": 0,
    "npt experiments table /nowhere": 2,
    "npt experiments grid OUT --rows NO.KEY --column seed": 2,
    "npt experiments collect OUT --csv OUT/runs.csv": 0,
}


def imported(commands, out: Path) -> dict[str, tuple[str, str]]:
    """The exit code of each command, and what all commands up to it have imported."""
    lines = "\n".join(command.replace("OUT", str(out)) for command in commands)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=lines, cwd=ROOT, env=env, text=True,
        capture_output=True,
    )  # fmt: skip
    rows = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(rows) == len(commands), done.stdout + done.stderr
    return {command: (row[0], row[1]) for command, row in zip(commands, rows, strict=True)}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    from fake_runs import runs, write

    folder = tmp_path_factory.mktemp("out")
    for run in runs(folder, 2):
        write(run)
    return folder


def test_what_computes_nothing_imports_nothing_heavy(out):
    assert imported(CODES, out) == {c: (str(code), "-") for c, code in CODES.items()}


def test_tables_of_records_do_not_import_torch(out):
    wanted = {c: (str(code), "pandas") for c, code in WITH_PANDAS.items()}
    assert imported(WITH_PANDAS, out) == wanted


def test_the_engine_has_all_of_npt_whichever_part_is_imported_first():
    """Names, and what acts on data, come with the parts of the engine that use them."""
    code = """
import importlib, sys, npt
for name in sys.argv[1:]:
    importlib.import_module(name)
from dassl.config import get_cfg_default
from dassl.data import DataManager, data_manager
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import MetricMeter, Registry, load_checkpoint, set_random_seed
print(
    "NPT" in get_cfg_default().TRAINER, "MaPLeNPT" in TRAINER_REGISTRY,
    data_manager.build_dataset.__module__, build_trainer.__module__,
)
"""
    for names in ([], ["dassl.engine"], ["dassl.data.data_manager"], ["dassl.data", "dassl.utils"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *names], env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True, capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["True", "True", "npt.host.thinning", "npt.host.naming"]
