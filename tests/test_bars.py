"""What a user sees of a training on a terminal, which is a real pseudo terminal here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pty")  # not on Windows
from terminal import ROOT, Session

# A training without torch: its trainer has what the bars read. `log.txt` is written as by Logger.
PROGRAM = """
import os, sys, time, warnings
from npt import bars

bars.EVERY = 0.0


class Logger:
    def __init__(self, path):
        self.console, self.file = sys.stdout, open(path, "w", buffering=1)
    def write(self, text):
        self.console.write(text)
        self.file.write(text)
    def __getattr__(self, name):
        return getattr(self.console, name)


class Trainer:
    epoch, max_epoch, num_batches, first_batch = 0, 3, 4, 0
    figures = {"loss": 1.23456, "loss_lc": 0.012345, "loss_mi": 0.54321, "lcd": 0.5, "acc": 71.25}
    def figures_so_far(self):
        return self.figures


def train(trainer, in_step=lambda: None, after_epoch=lambda: None):
    with bars.training(trainer) as shown:
        for trainer.epoch in range(trainer.epoch, trainer.max_epoch):
            if shown:
                shown.begin_epoch(32)
            for trainer.batch_idx in range(trainer.first_batch, trainer.num_batches):
                time.sleep(0.01)
                in_step()
                line = f"epoch [{trainer.epoch + 1}/3] batch [{trainer.batch_idx + 1}/4]"
                (shown.log if shown else print)(line)
                if shown:
                    shown.step()
            trainer.first_batch = 0
            if shown:
                shown.end_epoch()
            after_epoch()


trainer = Trainer()
if LOG:
    sys.stdout = Logger(LOG)
"""
LINES = [f"epoch [{epoch}/3] batch [{batch}/4]" for epoch in (1, 2, 3) for batch in (1, 2, 3, 4)]


def program(code: str = "train(trainer)", log: Path | None = None) -> list[str]:
    return ["-c", PROGRAM.replace("LOG", repr(str(log or ""))) + code + "\nprint('the end')\n"]


def drawn(output: str) -> list[str]:
    """What was drawn as a bar."""
    return re.findall(r"\r\x1b\[K([^\r\n\x1b]*)", output)


def shown(session: Session) -> list[str]:
    """The lines on the screen at the end, without those of the epochs."""
    assert session.end() == 0, session.output
    assert not session.screen.unknown
    lines = [line.rstrip() for line in session.screen.lines]
    return [line for line in lines if line and not re.match(r"epoch \d/3 \(", line)]


def test_bars_of_epochs_batches_and_figures_come_and_go(tmp_path):
    session = Session(program(log=tmp_path / "log.txt"))
    session.read(lambda: "batch 3/4" in session.output)
    epochs, batches, figures = [line.rstrip() for line in session.screen.lines[-3:]]
    assert re.fullmatch(r"epoch 1/3 \|.+\| 00:0\d left", epochs)
    assert re.fullmatch(r"batch 3/4 \|.+\| \d+ images/s, 00:00 left", batches)
    assert figures == "loss 1.23  lc 0.0123  mi 0.543  lcd 0.5  acc 71.2"
    assert shown(session) == ["the end"]
    of_epochs = [line for line in session.screen.lines if line.startswith("epoch ")]
    assert [line[:9] for line in of_epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert (tmp_path / "log.txt").read_text().splitlines() == [*LINES, "the end"]


def test_without_a_log_file_the_lines_are_printed_above_the_bars():
    assert shown(Session(program())) == [*LINES, "the end"]


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"TQDM_DISABLE": "1"}], ids=["dumb", "switched off"]
)
def test_without_bars_a_terminal_has_the_plain_lines(environment):
    session = Session(program(), **environment)
    assert shown(session) == [*LINES, "the end"]
    assert "\x1b" not in session.output and "\r\r" not in session.output


@pytest.mark.parametrize("pipe", ["| cat", "2> /dev/null"], ids=["stdout", "stderr"])
def test_no_bars_unless_both_streams_are_terminals(pipe):
    """With `| tee log.txt`, the lines come to the same terminal by another way."""
    line = f"{shlex.join([sys.executable, *program()])} {pipe}"
    session = Session(["-c", f"import os; os.system({line!r})"])
    assert shown(session) == [*LINES, "the end"]
    assert "\x1b" not in session.output


def test_what_is_printed_meanwhile_is_whole_and_in_order(tmp_path):
    code = """
import logging

logging.basicConfig(format="logged %(message)s")

def say():
    at = f"{trainer.epoch} {trainer.batch_idx}"
    print("out", end=" "); print(at)
    print("err", at, file=sys.stderr)
    warnings.warn(f"warned {at}")
    logging.warning(at)
    print("two\\nlines")

train(trainer, say)
print("no end", end=""); sys.stdout.flush(); print()
"""
    lines = shown(Session(program(code, tmp_path / "log.txt")))
    lines = [line for line in lines if "warnings.warn(" not in line]
    expected = []
    for at in (f"{e} {b}" for e in range(3) for b in range(4)):
        expected += [f"out {at}", f"err {at}", f"UserWarning: warned {at}"]
        expected += [f"logged {at}", "two", "lines"]
    lines = [re.sub(r"^<string>:\d+: ", "", line) for line in lines]
    assert lines == [*expected, "no end", "the end"]
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert log[:4] == ["out 0 0", "two", "lines", LINES[0]]


def test_the_log_file_has_the_bytes_that_a_pipe_gets(tmp_path):
    code = "train(trainer, lambda: print('a', end=''), lambda: print('\\n\\nb'))"
    piped = subprocess.run(
        [sys.executable, *program(code, tmp_path / "piped")],
        capture_output=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert Session(program(code, tmp_path / "log")).end() == 0
    logged = (tmp_path / "log").read_bytes()
    assert logged == (tmp_path / "piped").read_bytes() == piped.stdout and not piped.stderr


def test_a_narrow_terminal_has_whole_figures_only():
    session = Session(program(), columns=40)
    session.read(lambda: "batch 3/4" in session.output)
    assert max(map(len, drawn(session.output))) == 39
    assert "loss 1.23  lc 0.0123  mi 0.543  lcd 0.5" in drawn(session.output)
    assert "images/s" not in session.output and "acc" not in "".join(drawn(session.output))
    assert session.end() == 0 and not any("left" in line for line in session.screen.lines)


def test_a_window_that_becomes_narrower():
    code = """
def resize():
    if trainer.epoch == 1 and trainer.batch_idx == 0:
        sys.stdin.readline()

train(trainer, resize)
"""
    session = Session(program(code), columns=100)
    session.read(lambda: "epoch 1/3 (" in session.output)
    session.resize(50)
    session.type(b"\n")
    assert session.end() == 0
    before, _, after = session.output.partition("epoch 2/3 (")
    assert (max(map(len, drawn(before))), max(map(len, drawn(after)))) == (99, 49)


def test_a_locale_without_utf_8():
    session = Session(program(), LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert shown(session) == [*LINES, "the end"]
    assert session.output.isascii() and "batch 3/4 |###" in session.output


def test_a_bar_of_the_host_has_a_line_of_its_own():
    code = """
from tqdm import tqdm

def host():
    for _ in tqdm(range(3), desc="host's own", leave=False):
        time.sleep(0.11)

train(trainer, after_epoch=host)
"""
    session = Session(program(code))
    session.read(lambda: "| 2/3" in session.output)
    rows = [line for line in session.screen.lines if line.strip()]
    assert rows[-1].startswith("host's own") and rows[-2].startswith("loss 1.23")
    assert shown(session) == [*LINES, "the end"]


def test_a_training_that_goes_on_begins_at_its_place():
    code = "trainer.epoch, trainer.first_batch = 1, 2\ntrain(trainer)"
    session = Session(program(code))
    assert session.end() == 0
    places = re.findall(r"(epoch \d/3|batch \d/4) +\|", session.output)
    assert places[:2] == ["epoch 2/3", "batch 2/4"] and "epoch 1/3" not in session.output
    assert places[-2:] == ["epoch 3/3", "batch 4/4"]


def test_an_error_leaves_no_bar_behind():
    session = Session(program("train(trainer, lambda: 1 / 0)"))
    assert session.end() == 1
    lines = [line for line in session.screen.lines if line.strip()]
    assert lines[0].startswith("Traceback") and lines[-1].startswith("ZeroDivisionError")


def test_the_batches_of_a_test_have_a_bar_as_well():
    code = """
with bars.batches([1, 2, 3], "test") as batches:
    for batch in batches:
        print("batch", batch)
        time.sleep(0.02)
"""
    session = Session(program(code))
    assert shown(session) == ["batch 1", "batch 2", "batch 3", "the end"]
    assert "test 2/3 |" in session.output
    piped = subprocess.run([sys.executable, *program(code)], capture_output=True, cwd=ROOT)
    assert piped.stdout.split() == b"batch 1 batch 2 batch 3 the end".split() and not piped.stderr


# --------------------------------------------------------------------------- real trainings
def command(folder: Path, trainer: str, epochs: int = 2) -> list[str]:
    words = f"train.py --trainer {trainer} --config-file configs/trainers/CoOp/tiny.yaml"
    words += " --dataset-config-file configs/datasets/mini_flowers.yaml --seed 1"
    words += " DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES base USE_CUDA False"
    words += f" DATALOADER.TRAIN_X.BATCH_SIZE 4 TRAIN.PRINT_FREQ 4 OPTIM.MAX_EPOCH {epochs}"
    first, *rest = words.split()
    return [first, "--output-dir", str(folder), *rest]


def without_times(text: str, folder: Path) -> str:
    text = re.sub(r"Making Mini.*\n", "", text.replace(str(folder), "OUTPUT"))
    text = re.sub(r"(process|seconds|node|commit): .*", r"\1", text)
    text = re.sub(r"(time|data) \d+\.\d+ \(\d+\.\d+\)", r"\1", text)
    return re.sub(r"(eta|Elapsed:) [\d:]+", r"\1", text)


@pytest.mark.slow
def test_a_training_on_a_terminal_has_the_log_and_the_figures_of_one_in_a_pipe(tmp_path, python):
    piped, on_terminal = tmp_path / "piped", tmp_path / "on_terminal"
    done = python(*command(piped, "CoOp"))  # which reports neither LCD nor MID in its lines
    assert done.returncode == 0 and "images/s" not in done.stdout + done.stderr
    log = (piped / "log.txt").read_text()
    assert log.count("epoch [") == 6 and log in done.stdout
    session = Session(command(on_terminal, "CoOp"))
    assert session.end() == 0, session.output
    for words in ("images/s", "lcd 0.", "mid -0.", "acc ", "test 0/4 |", "epoch 2/2 ("):
        assert words in session.output, words
    assert not any("left" in line or "epoch [" in line for line in session.screen.lines)
    terminal_log = (on_terminal / "log.txt").read_text()
    assert without_times(terminal_log, on_terminal) == without_times(log, piped)
    records = [json.loads((folder / "result.json").read_text()) for folder in (piped, on_terminal)]
    for record in records:
        del record["results"]["test"]["seconds"]
    for entry in ("results", "course", "training", "per_class", "confusion"):
        assert records[0][entry] == records[1][entry]


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_and_the_next_command_goes_on(tmp_path):
    session = Session(command(tmp_path, "CoOpNPT", epochs=50))
    session.read(lambda: "epoch 3/50" in session.output)
    session.type(b"\x03")
    assert session.end() == 130
    lines = [line.rstrip() for line in session.screen.lines if line.strip()]
    assert "SIGINT: the run stops after this step." in lines
    assert lines[-1] == "Stopped by SIGINT: the same command goes on from this point"
    assert not any("left" in line for line in lines)
    session = Session(command(tmp_path, "CoOpNPT", epochs=50))
    session.read(lambda: re.search(r"batch \d+/\d+ +\|", session.output) is not None)
    session.type(b"\x03")
    session.end()
    first = re.search(r"epoch (\d+)/50 +\|", session.output)
    assert int(first[1]) >= 3
