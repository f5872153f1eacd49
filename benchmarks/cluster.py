"""Table 3 of the mini suite on a SLURM of one node, with everything that goes wrong on a cluster.

    sudo python benchmarks/cluster.py          # needs Debian's slurm-wlm and munge, and submitit

Starts a SLURM of its own on this machine, without systemd and without accounts, and executes the
table twice: with the workers of this machine, and as an array of jobs of which

- one is preempted (scontrol requeue),
- one reaches its time limit,
- one has all its processes killed,
- and the command that waits for them is killed, and given again.

Each of that happens while a job is in the middle of a training, and after it has ended a run. At
the end all figures of both are compared. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401

from npt.experiments.running import progress
from npt.experiments.running.slurm_queue import Job, jobs, submissions
from npt.experiments.state import has_trained

CHECKOUT = Path(__file__).resolve().parent.parent
PARTITION = "debug"
TIME = 10  # minutes of a job
COMMAND = ["reproduce", "table3", "--suite", "mini", "--seeds", "1"]
CONF = """
ClusterName=one
SlurmctldHost={node}
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={node} CPUs={cores} RealMemory=4000 State=UNKNOWN
PartitionName={partition} Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


# --------------------------------------------------------------------------- SLURM
@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A SLURM of one node inside a `with` block. SystemExit where that is not possible."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "runuser"))):
        raise SystemExit("this needs root, and Debian's packages slurm-wlm and munge")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    values = {"folder": folder, "node": socket.gethostname().partition(".")[0]}
    text = CONF.format(**values, cores=os.cpu_count(), partition=PARTITION)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    (folder / "slurm.conf").write_text(text)
    started = [] if _works("munge", "-n") else _munge()
    try:
        for program in ("slurmctld", "slurmd"):
            subprocess.run([program], check=True)
            started.append(folder / f"{program}.pid")
        _wait("SLURM to have a node", lambda: _works("srun", "--immediate=1", "true"))
        yield
    finally:
        if _works("scancel", "--me"):  # what an error has left
            time.sleep(3)
        for path in reversed(started):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def _munge() -> list[Path]:
    for path in map(Path, ("/run/munge", "/var/log/munge", "/var/lib/munge")):
        path.mkdir(parents=True, exist_ok=True)
        shutil.chown(path, "munge", "munge")
        path.chmod(0o755)
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
    return [Path("/run/munge/munged.pid")]


def _works(*command: str) -> bool:
    return not subprocess.run(command, capture_output=True).returncode


def scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


# --------------------------------------------------------------------------- the experiment
class Experiment:
    """The table in a folder: its command, and its jobs."""

    def __init__(self, out: Path, *flags: str) -> None:
        self.out = out
        self.command = [*COMMAND, "--out", str(out), *flags]

    def start(self) -> subprocess.Popen[bytes]:
        say(f"$ python -m npt.experiments {' '.join(self.command)}".replace(str(self.out), "OUT"))
        return subprocess.Popen([sys.executable, "-m", "npt.experiments", *self.command])

    def places(self) -> dict[tuple[str, int], list[Path]]:
        """The folders of each job's runs."""
        return {
            (name, index): [self.out / key for key in keys]
            for name, jobs in submissions(self.out).items()
            for index, keys in enumerate(jobs)
        }

    def in_the_middle(self, avoid: set[str]) -> Job | None:
        """A job, not one of `avoid`, that has ended a run and is in the middle of a training."""
        places = self.places()
        for job in jobs(submissions(self.out)):
            folders = places[job.place]
            records = [progress.read(folder) for folder in folders]
            done = any(record.get("state") == progress.DONE for record in records)
            training = any(
                record.get("state") == progress.RUNNING
                and (record["epoch"] or 0) > 1
                and not has_trained(folder / str(record["evaluation"]))
                for folder, record in zip(folders, records, strict=True)
            )
            if job.state == "RUNNING" and job.id not in avoid and done and training:
                return job
        return None

    def figures(self) -> dict[str, Any]:
        """All numbers of all records, without times and memory."""
        return {
            str(path.relative_to(self.out)): _timeless(json.loads(path.read_text()))
            for path in sorted(self.out.glob("*/*/*/*/*/*/*/result.json"))
        }


UNSTEADY = (
    "seconds",
    "train_seconds",
    "peak_memory_bytes",
    "sha256",
    "config",
    "environment",
    "model",
)


def _timeless(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _timeless(x) for key, x in record.items() if key not in UNSTEADY}
    return [_timeless(x) for x in record] if isinstance(record, list) else record


def _numbers(found: Any) -> int:
    if isinstance(found, (dict, list)):
        return sum(map(_numbers, found.values() if isinstance(found, dict) else found))
    return isinstance(found, (int, float))


# --------------------------------------------------------------------------- what goes wrong
def preempt(job: Job) -> None:
    scontrol("requeue", job.id)


def run_out_of_time(job: Job) -> None:
    """Let the job's time be up in one or two minutes, and give its next turn the time it had."""
    spent = int(_squeue(job, "%M").split(":")[-2])  # minutes
    scontrol("update", f"JobId={job.id}", f"TimeLimit={spent + 2}")
    _wait("the time-out", lambda: _state(job) == "PENDING")
    scontrol("update", f"JobId={job.id}", f"TimeLimit={TIME}")


def kill(job: Job) -> None:
    """Kill all processes of the job."""
    for line in scontrol("listpids", _squeue(job, "%A")).splitlines()[1:]:
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


def _state(job: Job) -> str:
    return next(x.state for x in jobs({job.name}) if x.id == job.id)


def _squeue(job: Job, field: str) -> str:
    command = ["squeue", "--noheader", f"--jobs={job.id}", f"--format={field}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _wait(what: str, condition: Callable[[], Any], seconds: float = 900) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.5)
    return found


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {words}", flush=True)


def disturb(experiment: Experiment) -> None:
    """Execute the experiment on the cluster, with everything that goes wrong."""
    command, harmed = experiment.start(), set[str]()
    for harm in (preempt, run_out_of_time, kill):
        job = _wait("a job in the middle", lambda: experiment.in_the_middle(harmed))
        harmed.add(job.id)
        say(f"-- {harm.__name__.replace('_', ' ')}: job {job.id}")
        harm(job)
        if harm is preempt:
            say("-- kill the command that waits")
            command.kill()
            command.wait()
            command = experiment.start()
    code = command.wait()
    say(f"exit code {code}")
    if code:
        raise SystemExit("the run of the killed job should have been submitted again")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a new folder (default: a temporary one)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(CHECKOUT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.out or Path(temporary)).resolve()
        here = Experiment(folder / "here", "--jobs", str(args.jobs))
        there = Experiment(
            folder / "there", "--slurm", PARTITION, "--time", str(TIME), "--max-jobs", "4"
        )
        with slurm(folder / "slurm"):
            disturb(there)
        say("-- the same on this machine")
        here.start().wait()
        one, other = here.figures(), there.figures()
        different = [name for name in one | other if one.get(name) != other.get(name)]
    say(f"{len(one)} records with {_numbers(one)} numbers: {len(different)} records differ")
    for name in different:
        print(f"  {name}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
