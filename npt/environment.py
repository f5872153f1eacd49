"""Where this process runs: its node, its GPU, its job of a cluster, and the commit of its code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from npt.version import __version__

HOME = Path(__file__).resolve().parent  # the package
PATIENCE = 20  # seconds that git may take, on a slow disk


def describe() -> dict[str, str | None]:
    """What a record says of where it was made; None: there is none, or it is not known."""
    return {"node": node(), "gpu": gpu(), "commit": commit(), "job": job()}


def node() -> str:
    return socket.gethostname()


def gpu() -> str | None:
    """Name and identity of the GPU that this process uses; None as long as it uses none.

    It never starts CUDA itself, which would take memory of the GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    index = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(index)
    identity = getattr(found, "uuid", None)  # torch < 2.4 does not know it
    return f"{found.name} ({_visible(index)}{f', GPU-{identity}' if identity else ''})"


def _visible(index: int) -> str:
    """The number of a GPU on the node, where CUDA_VISIBLE_DEVICES hides others."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return shown[index] if index < len(shown) and shown[index] else str(index)


def job() -> str | None:
    """The SLURM job of this process, JOB or ARRAY_TASK; None outside of one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


@cache
def commit() -> str | None:
    """The commit of the checkout that the package is in, with -dirty where files are changed.

    None for an installed package, also if that lies in the repository of another project.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*words: str) -> str | None:
    """The output of git in the package's folder; None if that fails, or there is no git."""
    # GIT_DIR and the like, which a hook of git sets, name other repositories.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    options: dict[str, Any] = {"env": clean, "timeout": PATIENCE, "stdin": subprocess.DEVNULL}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(HOME), "--no-optional-locks", *words],
            capture_output=True,
            check=True,
            **options,
        )
        return done.stdout.decode("utf-8", "replace").strip()
    return None


def lines() -> str:
    """The same for the beginning of a log."""
    found = {"NPT": __version__, **describe(), "process": os.getpid()}
    return "\n".join(f"{name}: {value}" for name, value in found.items() if value)
