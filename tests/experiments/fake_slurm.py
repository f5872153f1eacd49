"""A SLURM of files and processes, for tests: `install` puts its programs on the PATH.

$FAKE_SLURM is its folder, with a file for each job: state, reason. $FAKE_FATE is what becomes of
jobs: "" (they run), a reason for which they never start, a state in which they end without having
run, or "silent" (squeue fails two times).
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
HERE = Path(__file__).resolve()


def install(folder: Path, monkeypatch, fate: str = "") -> Path:
    """Make the programs those that are found first; returns the folder of the jobs' files."""
    programs, jobs = folder / "programs", folder / "slurm"
    for path in (programs, jobs):
        path.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {HERE} {name} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    monkeypatch.setenv("FAKE_FATE", fate)
    search = [str(HERE.parent), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, search)))
    return jobs


def note(job: str, **values: str) -> None:
    path = Path(os.environ["FAKE_SLURM"], job)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    temporary = path.with_name(f".{job}.{os.getpid()}")
    temporary.write_text(json.dumps({**earlier, **values}))
    temporary.replace(path)


def listed() -> dict[str, dict[str, str]]:
    folder = Path(os.environ["FAKE_SLURM"])
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*"))}


def sbatch(script: str) -> int:
    text = Path(script).read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    if flags["partition"] != "debug":
        print("sbatch: error: invalid partition specified", file=sys.stderr)
        return 1
    seen = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    Path(os.environ["FAKE_SLURM"], "variables").write_text(" ".join(seen))
    number = 1 + len({job.partition("_")[0] for job in listed()})
    tasks = re.match(r"0-(\d+)", flags.get("array", ""))
    for job in [f"{number}_{i}" for i in range(int(tasks[1]) + 1)] if tasks else [str(number)]:
        begin(job, flags["job-name"], script)
    print(f"Submitted batch job {number}")
    return 0


def begin(job: str, name: str, script: str) -> None:
    fate = os.environ["FAKE_FATE"]
    note(job, name=name, state="PENDING", reason="Resources")
    if fate in ("", "silent"):
        command = [sys.executable, str(HERE), "task", job, script]
        nowhere = {key: subprocess.DEVNULL for key in ("stdin", "stdout", "stderr")}
        subprocess.Popen(command, **nowhere, start_new_session=True)
    elif fate.isupper():
        note(job, state=fate)
    else:
        note(job, reason=fate)


def task(job: str, script: str) -> int:
    """Run a job again and again until it ends without having been put back into the queue."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    array, _, index = job.partition("_")
    ids = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index} if index else {}
    environment = {**os.environ, **ids, "SLURM_JOB_ID": array, "SUBMITIT_EXECUTOR": "slurm"}
    again = True
    while again:
        note(job, state="RUNNING", reason="None", session=os.getpid(), again="")
        code = subprocess.run(["bash", script], env=environment).returncode
        again = bool(listed()[job]["again"])
    note(job, state="FAILED" if code else "COMPLETED")
    return 0


def srun(*words: str) -> int:
    """Execute a command with its output in files."""
    job = [os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK")]
    number = os.environ["SLURM_JOB_ID"]
    names = {"%A": job[0], "%a": job[1], "%j": number, "%t": "0"}
    taken, rest = {}, list(words)
    while rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            taken[flag] = rest.pop(0)
            for key, value in names.items():
                taken[flag] = taken[flag].replace(key, value)
    with open(taken["--output"], "a") as out, open(taken["--error"], "a") as error:
        return subprocess.run(rest, stdout=out, stderr=error).returncode


def squeue(*words: str) -> int:
    silent = Path(os.environ["FAKE_SLURM"], "silent")
    times = len(silent.read_text()) if silent.exists() else 0
    if os.environ["FAKE_FATE"] == "silent" and times < 2:
        silent.write_text("x" * (times + 1))
        print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
        return 1
    wanted = next(word for word in words if word.startswith("--name=")).partition("=")[2]
    for job, values in listed().items():
        if values["name"] in wanted.split(","):
            print(f"{job}|{values['name']}|{values['state']}|{values['reason']}")
    return 0


def scancel(*found: str) -> int:
    for job, values in listed().items():
        if job in found or job.partition("_")[0] in found:
            if "session" in values:
                os.killpg(int(values["session"]), signal.SIGKILL)
            note(job, state="CANCELLED")
    return 0


def scontrol(verb: str, job: str) -> int:
    assert verb == "requeue"
    note(job, again="yes")
    os.killpg(int(listed()[job]["session"]), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
