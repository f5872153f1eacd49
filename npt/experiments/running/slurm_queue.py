"""The jobs of a folder, what SLURM says of them, and what that means in words.

A submission is an array of jobs, and a folder OUT/jobs/NAME, whose record has the runs of each job;
NAME is also the jobs' name in SLURM. So every call finds them, however the one before it ended.
`squeue` is asked, because a cluster need not keep accounts, without which `sacct` fails. It knows a
job until some minutes after its end. How a run ended is in the run's files, not here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from npt.errors import NPTError
from npt.experiments.plan import Run
from npt.files import read_record

JOBS, RECORD = "jobs", "runs.json"  # the folder in OUT, and the record in a submission's
PATIENCE = 60  # seconds for an answer
FIELDS = "%i|%j|%T|%r"
ENDS = {  # state of a job that has ended -> why its runs have; "" where the log has to tell
    "COMPLETED": "",
    "FAILED": "",
    "OUT_OF_MEMORY": "the memory of its job was full: more --mem, or fewer --jobs",
    "TIMEOUT": "its job ran out of time and SLURM did not start it again: more --time",
    "DEADLINE": "its job ran out of time and SLURM did not start it again: more --time",
    "CANCELLED": "its job was cancelled",
    "PREEMPTED": "its job gave way to another one and SLURM did not start it again",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "REVOKED": "its job was cancelled",
}
HOPELESS = {  # reasons for which a job waits and will not start, whoever else ends
    r"PartitionTimeLimit": "the partition does not allow this --time",
    r"PartitionNodeLimit": "the partition does not have such nodes",
    r"BadConstraints": "no node has what --mem, --gpus and the constraints ask for",
    r"Invalid(Account|QOS)|(Account|QOS)NotAllowed": "--account must not use this partition",
    r"(QOS|Assoc)Max\w*Per(Job|Node)\w*": "this account may not have as much in one job",
    r"JobHeldUser": "it is held; scontrol release ends that",
    r"JobHeldAdmin": "an administrator holds it",
    r"launch failed requeued held": "its node could not start it",
}


Place = tuple[str, int]  # a job: the name of its submission, and its index in the array


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array of jobs."""

    id: str  # 12, or 12_3 in an array
    name: str
    state: str
    reason: str

    @property
    def place(self) -> Place:
        return self.name, int(self.id.partition("_")[2] or 0)

    @property
    def array(self) -> str:
        return self.id.partition("_")[0]

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def obstacle(self) -> str | None:
        """Why it will never start, with SLURM's own word."""
        if self.waits:
            for pattern, words in HOPELESS.items():
                if re.fullmatch(pattern, self.reason):
                    return f"{words} ({self.reason})"
        return None


def jobs(names: Collection[str]) -> list[Job]:
    """The jobs with these names. NPTError, with squeue's words, if SLURM does not answer."""
    if not names:
        return []
    listed = ["--noheader", "--array", "--states=all", f"--name={','.join(names)}"]
    lines = _ask("squeue", *listed, f"--format={FIELDS}").splitlines()
    return [Job(*line.split("|", 3)) for line in lines if line.count("|") >= 3]


def cancel(found: Collection[Job]) -> None:
    """End jobs. NPTError if SLURM does not answer."""
    if found:
        _ask("scancel", *(job.id for job in found))


def scancel(found: Collection[Job]) -> str:
    """The command that ends jobs."""
    return " ".join(["scancel", *sorted({job.array for job in found}, key=int)])


# --------------------------------------------------------------------------- submissions
def key(run: Run) -> str:
    """The run in the record of a submission."""
    return run.folder.relative_to(run.out).as_posix()


def submissions(out: Path) -> dict[str, list[list[str]]]:
    """The keys of each job's runs, by the name of the submission. Damage is named on stderr."""
    found = {}
    for path in sorted((out / JOBS).glob(f"*/{RECORD}")):
        try:
            found[path.parent.name] = read_record(path)["jobs"]
        except (NPTError, KeyError) as error:
            print(f"warning: the jobs of {path} are not known: {error}", file=sys.stderr)
    return found


def refuse_queued(runs: Sequence[Run]) -> None:
    """NPTError if some of the runs are in jobs of a cluster that answers here."""
    for out in {run.out for run in runs}:
        known, found = submissions(out), []
        with suppress(NPTError):
            found = [job for job in jobs(known) if not job.has_ended]
        wanted = {key(run) for run in runs if run.out == out}
        busy = [job for job in found if wanted & set(known[job.name][job.place[1]])]
        if busy:
            raise NPTError(
                f"{len(busy)} jobs with these runs are in the queue: add --slurm to wait for them, "
                f"or end them with {scancel(busy)}"
            )


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NPTError(f"{command[0]} does not answer ({error})") from error
    if done.returncode:
        raise NPTError(f"{command[0]} does not answer ({' '.join(done.stderr.split())})")
    return done.stdout
