"""A small experiment under random faults, again and again, compared with an undisturbed one.

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --minutes 1 --seed 17        # begin with round 17

In each round the experiment is started in a new folder and disturbed once: its processes are
killed or stopped, its disk fills up, a second runner is started beside it, or one of its files is
damaged. Then it is started again until it ends. A start may refuse a file, in one sentence that
names it; that file is deleted if the sentence says so. At the end every figure must be that of the
undisturbed experiment. A traceback, a start that hangs, a process that is left and a figure that
differs are failures: the folder of the round is kept, and the exit code is 1. Linux only; a full
disk needs the right to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  first: npt of this checkout
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = """
trainers:
  CoCoOpNPT: {config: configs/trainers/CoCoOp/tiny.yaml}
  MaPLeNPT: {config: configs/trainers/MaPLe/tiny.yaml, opts: {DATALOADER.NUM_WORKERS: 1}}
  CoOp: {config: configs/trainers/CoOp/tiny.yaml, opts: {TEST.FINAL_MODEL: best_val}}
datasets: [mini_flowers]
ratios: [0.1]
shots: 4
evaluate: [val, test]
opts: {OPTIM.MAX_EPOCH: 3}
"""
MOST_STARTS = 8  # of the experiment in a round
DISK = 96 << 20  # bytes of the disk that fills up
CHECKPOINT, CACHE = "a checkpoint", "the mini suite's cache"
PLACES = {
    CHECKPOINT: "*/*/*/*/seed*/*/*/model*.pth.tar*",
    "the state to go on from": "*/*/*/*/seed*/*/resume/*.pth.tar",
    "result.json": "*/*/*/*/seed*/*/result*.json",
    "run.json": "*/*/*/*/seed*/run.json",
    CACHE: "npt/**/*",
}
ENDS = ("identical", "named, then identical", "FAILED")


class Failure(Exception):
    """What a round must not show."""


class Skipped(Exception):
    """Why a round is not possible on this machine."""


# --------------------------------------------------------------------------- the experiment
class Start:
    """One start of the experiment, in a process group of its own."""

    def __init__(self, soak: Soak, out: Path, command: str = "run"):
        run = command == "run"
        what = [soak.experiment, "--out", out, "--jobs", 2] if run else [out]
        number, name = tempfile.mkstemp(prefix="output-", dir=soak.folder)
        self.soak, self.output = soak, Path(name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "npt.experiments", command, *map(str, what)],
            env=soak.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=number,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(number)

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        number = self.process.pid
        try:
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            lines = {int(c): Path(f"/proc/{c}/cmdline").read_text() for c in children}
        except OSError:  # one has ended in the meantime
            return []
        return [child for child, line in lines.items() if "spawn_main" in line]

    def send(self, number: int, group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; returns the exit code. Failure at a traceback, a hang or an orphan."""
        try:
            code = self.process.wait(self.soak.limit)
            self._wait_for_group()
        except subprocess.TimeoutExpired:
            raise Failure(f"no end after {self.soak.limit:.0f} s") from None
        finally:
            self.send(signal.SIGKILL, group=True)
            self.process.wait()
        if "Traceback (most recent call last)" in self.text():
            raise Failure("a traceback")
        return code

    def _wait_for_group(self) -> None:
        end = time.monotonic() + 30
        while left := members(self.process.pid):
            if time.monotonic() > end:
                raise Failure(f"processes are left after the end of the runner: {left}")
            time.sleep(0.1)

    def text(self) -> str:
        return self.output.read_text(errors="replace")


def members(group: int) -> list[str]:
    """The command lines of the processes of a group; zombies are left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def figures(out: Path) -> dict[str, Any]:
    """Every figure in the folder of an experiment, by file; times and memory are left out."""
    found = {}
    for path in sorted(out.rglob("result.json")):
        try:
            content = json.loads(path.read_text())
            results = content["results"]
        except (ValueError, KeyError) as error:
            raise Failure(f"a damaged {path} at the end") from error
        for split in results.values():
            split.pop("seconds", None)
        found[str(path.relative_to(out))] = results | {"training": content.get("training")}
    return found


@dataclass
class Soak:
    """What all rounds share. limit: seconds after which a start hangs"""

    folder: Path
    limit: float = 600.0
    seconds: float = 0.0  # of the undisturbed experiment
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.yaml"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.cache),
        }

    def prepare(self) -> None:
        """Run the experiment undisturbed; keep its figures, its time and the cache it makes."""
        self.experiment.write_text(EXPERIMENT)
        for name in ("first", "undisturbed"):  # the first one makes the data set
            start = time.monotonic()
            run = Start(self, self.folder / name)
            if run.end() != 0:
                sys.exit(f"error: the experiment fails without a fault:\n{run.text()}")
            self.seconds = time.monotonic() - start
        self.limit = 60 + 10 * self.seconds
        self.expected = figures(self.folder / "undisturbed")
        if figures(self.folder / "first") != self.expected:
            sys.exit("error: two undisturbed experiments differ")
        shutil.copytree(self.cache, self.folder / "good cache")

    def restore_cache(self) -> None:
        shutil.rmtree(self.cache)
        shutil.copytree(self.folder / "good cache", self.cache)


# --------------------------------------------------------------------------- faults
@dataclass
class Round:
    """One round: `note` says what was done, `named` are the sentences it led to."""

    soak: Soak
    chance: random.Random
    out: Path
    note: str = ""
    named: list[str] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    def start(self) -> Start:
        self.starts.append(Start(self.soak, self.out))
        return self.starts[-1]

    def pause(self) -> None:
        """Wait for a random moment of the experiment."""
        time.sleep(self.chance.uniform(0.0, self.soak.seconds))


Fault = Callable[[Round], None]


def stop(number: int, to: str) -> Fault:
    """Send a signal to the runner, a worker or all processes at a random moment."""

    def fault(this: Round) -> None:
        run = this.start()
        this.pause()
        while number == signal.SIGINT and not run.text() and run.process.poll() is None:
            time.sleep(0.1)  # Python itself has a traceback for Ctrl-C while it imports torch
        workers = run.workers()
        if to == "worker" and workers:
            with suppress(ProcessLookupError):  # it has ended in the meantime
                os.kill(this.chance.choice(workers), number)
        elif to != "worker":
            run.send(number, group=to == "all")
        code = run.end()
        this.note = f"exit code {code}"
        this.named += sentences(run)

    return fault


def damage(change: Callable[[bytearray, random.Random], bytes], name: str) -> Fault:
    """Kill the experiment at a random moment and change one file, of the cache or of its folder.

    In the folder it is one of the newest two, which the next start is likely to read.
    """

    def fault(this: Round) -> None:
        in_cache, pattern = name == CACHE, PLACES[name]
        where = this.soak.cache if in_cache else this.out
        while not (files := [p for p in where.glob(pattern) if p.is_file() and p.stat().st_size]):
            run = this.start()
            this.pause()
            run.send(signal.SIGKILL, group=True)
            run.end()
        files.sort(key=lambda path: (path.stat().st_mtime_ns, path))
        path = this.chance.choice(files if in_cache else files[-2:])
        path.write_bytes(change(bytearray(path.read_bytes()), this.chance))
        this.note = str(path.relative_to(this.soak.folder))
        if name == CHECKPOINT:  # its run must need it
            (path.parents[2] / "new" / "result.json").unlink(missing_ok=True)
        if path.suffix == ".json" and not in_cache:
            Start(this.soak, this.out, "table").end()

    return fault


def flipped(content: bytearray, chance: random.Random) -> bytes:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def truncated(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(len(content))])


def two_runners(this: Round) -> None:
    first = this.start()
    this.pause()
    if first.process.poll() is None and first.workers():
        second = this.start()
        code = second.end()
        words = " ".join(sentences(second))
        if first.process.poll() is None and (code != 2 or "another process" not in words):
            raise Failure(f"a second runner ends with {code}: {words}")
        this.note = f"the second one: {words}"
    first.end()


def full_disk(this: Round) -> None:
    """Fill the disk of the experiment's folder at a random moment, until the experiment ends."""
    run = this.start()
    this.pause()
    filler, room = this.out.parent / "filler", this.chance.choice((0, 4 << 10, 64 << 10))
    with filler.open("wb") as file:
        try:
            free = shutil.disk_usage(this.out.parent).free
            os.posix_fallocate(file.fileno(), 0, max(1, free - room))
        except OSError:
            pass  # the experiment has written in between: the disk is full
    code = run.end()
    filler.unlink()
    this.note = f"{room} bytes left, exit code {code}"
    this.named += sentences(run)


FAULTS: dict[str, Fault] = {
    "SIGKILL to the runner": stop(signal.SIGKILL, "runner"),
    "SIGKILL to a worker": stop(signal.SIGKILL, "worker"),
    "SIGKILL to all processes": stop(signal.SIGKILL, "all"),
    "SIGTERM to the runner": stop(signal.SIGTERM, "runner"),
    "SIGTERM to a worker": stop(signal.SIGTERM, "worker"),
    "SIGUSR1 to all processes": stop(signal.SIGUSR1, "all"),
    "Ctrl-C": stop(signal.SIGINT, "all"),
    "two runners at once": two_runners,
    "full disk": full_disk,
    **{f"a bit flipped in {name}": damage(flipped, name) for name in PLACES},
    **{f"the end cut off {name}": damage(truncated, name) for name in PLACES},
}


# --------------------------------------------------------------------------- rounds
def sentences(run: Start) -> list[str]:
    """The errors and warnings of a start."""
    lines = run.text().splitlines()
    return [line for line in lines if line.startswith(("error: ", "failed: ", "warning: "))]


def finish(this: Round) -> None:
    """Start the experiment until it ends, and delete the files that it says to delete."""
    for _ in range(MOST_STARTS):
        run = this.start()
        code = run.end()
        this.named += sentences(run)
        if code == 0:
            return
        errors = [words for words in sentences(run) if not words.startswith("warning: ")]
        if code not in (1, 2) or not errors:
            raise Failure(f"exit code {code}: {run.text()[-300:]}")
        for path in {*filter(None, map(to_delete, errors))}:
            if this.soak.folder in path.parents and os.path.lexists(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                raise Failure(f"there is no such file: {errors}")
    raise Failure(f"no end after {MOST_STARTS} starts: {this.named[-1]}")


def to_delete(words: str) -> Path | None:
    """The file that a sentence says to delete: the one after that word, else the first."""
    words, path = words.partition(" (see ")[0], r"(/[^\s'\":;,()]+)"
    found = re.search(rf"\bdelete {path}", words) or re.search(path, words)
    return Path(found.group(1)) if found and re.search(r"\bdelete\b", words) else None


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """The first figure that differs; "" if none does."""
    for path in expected.keys() | found.keys():
        if expected.get(path) != found.get(path):
            return f"{path}: {found.get(path)} instead of {expected.get(path)}"
    return ""


@contextmanager
def place(soak: Soak, seed: int, disk: bool) -> Iterator[Path]:
    """A new folder for a round; with `disk`, on a small disk of its own."""
    folder = soak.folder / f"round-{seed}"
    folder.mkdir()
    mounted = False
    if disk:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
        mounted = (
            bool(shutil.which("mount"))
            and not subprocess.run(command, capture_output=True).returncode
        )
        if not mounted:
            raise Skipped("a tmpfs cannot be mounted here")
    try:
        yield folder / "out"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def play(soak: Soak, seed: int) -> tuple[str, str]:
    """One round; returns (fault, end)."""
    chance, name = random.Random(seed), list(FAULTS)[seed % len(FAULTS)]
    began = time.monotonic()
    with place(soak, seed, disk=name == "full disk") as out:
        this = Round(soak, chance, out)
        end, why = ENDS[2], ""
        try:
            FAULTS[name](this)
            finish(this)
            why = difference(soak.expected, figures(out))
            end = ENDS[2] if why else ENDS[bool(this.named)]
        except Failure as failure:
            why = str(failure)
        finally:
            for run in this.starts:
                run.send(signal.SIGKILL, group=True)
        print(f"seed {seed}: {name} ({this.note}): {end} after {time.monotonic() - began:.0f} s")
        for words in [*this.named, why]:
            if words:
                print(f"    {words}", flush=True)
        if end == ENDS[2]:
            kept = soak.folder / f"failed-{seed}"
            shutil.copytree(out.parent, kept, symlinks=True)
            shutil.copytree(soak.cache, kept / "cache")
            print(f"    kept in {kept}", flush=True)
    shutil.rmtree(soak.folder / f"round-{seed}")
    soak.restore_cache()
    return name, end


def table(ends: Counter[tuple[str, str]]) -> str:
    rows = [[name, *(ends[name, end] for end in ENDS)] for name in FAULTS]
    rows = [[name, sum(counts), *counts] for name, *counts in rows]
    total = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    return tabulate([*rows, ["all", *total]], ["fault", "rounds", *ENDS], tablefmt="github")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, required=True, help="when no new round begins")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round; then seed + 1, ..."
    )
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    soak = Soak(Path(tempfile.mkdtemp(prefix="soak-")))
    print(f"in {soak.folder}", flush=True)
    try:
        soak.prepare()
    except Failure as failure:
        sys.exit(f"error: without a fault: {failure}")
    print(f"undisturbed: {soak.seconds:.0f} s, {len(soak.expected)} records", flush=True)
    ends: Counter[tuple[str, str]] = Counter()
    seed = args.seed
    while time.monotonic() < end:
        try:
            ends[play(soak, seed)] += 1
        except Skipped as why:
            print(f"seed {seed}: {list(FAULTS)[seed % len(FAULTS)]}: left out, {why}", flush=True)
        seed += 1
    print(f"\n{table(ends)}")
    failed = any(ends[name, ENDS[2]] for name in FAULTS)
    if not failed:
        shutil.rmtree(soak.folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
