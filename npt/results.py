"""The record of a run: result.json, what it depends on, and the lines that a test prints."""

from __future__ import annotations

import json
import math
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from npt import files
from npt.config import KEYS
from npt.terms import MEASURES, headings
from npt.version import __version__

RESULT = "result.json"
Results = dict[str, float | None]  # figures of a split by name; None: not computed
SAME_RUN = ("trainer", "dataset", "seed", "classnames")  # with the config, what makes it a run


def describe(cfg: Any, classnames: list[str]) -> dict[str, Any]:
    """The entries of result.json that describe the run."""
    return {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "config": _plain(cfg),
        "versions": versions(),
        "classnames": classnames,
        "headings": headings(),
    }


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write result.json atomically."""
    files.write_json(folder / RESULT, record)


def read_same_run(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The content of `folder`/result.json if it belongs to the same run, else an empty dict.

    Keys under TEST may differ; a key that one of both lacks has its default there.
    """
    found = _read(folder)
    if any(found.get(key) != record[key] for key in SAME_RUN):
        return {}
    old, new = (_flat(x.get("config", {})) for x in (found, json.loads(json.dumps(record))))
    for key in old.keys() | new.keys():
        default = KEYS[key].default if key in KEYS else None
        if not key.startswith("TEST.") and old.get(key, default) != new.get(key, default):
            return {}
    return found


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A nested config as full key -> value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{above}{name}.") if inside else {f"{above}{name}": value}
    return flat


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures in `folder`/result.json by split; empty if there are none."""
    found = _read(folder).get("results")
    return found if isinstance(found, dict) else {}


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def print_results(results: Results) -> None:
    """Print the figures of a test that follow the engine's own."""

    def percent(name: str) -> str:
        value = results.get(name)
        return "-" if value is None else f"{value:.1f}%"

    print(f"* class-mean accuracy: {percent('class_mean_accuracy')}")
    print(f"* many/medium/few accuracy: {' / '.join(map(percent, ('many', 'medium', 'few')))}")
    for name in MEASURES:
        value = results.get(name)
        print(f"* {name}: {'-' if value is None else f'{value:.4f}'}")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from npt import engine

    found = engine.describe()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clip": _clip_version(),
        "npt": __version__,
        "engine": f"{found.name} {found.version}",
    }


def _clip_version() -> str:
    for name in ("clip", "clip-anytorch", "openai-clip"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def reset_peak_memory() -> None:
    """Restart the peaks that `peak_memory` reports, where the system can (Linux; CUDA)."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process, and of torch on the GPU, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        host = None
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return {"peak_memory_bytes": host, "peak_gpu_memory_bytes": gpu}


def _plain(node: Any) -> Any:
    """A config tree as plain values for JSON."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node
