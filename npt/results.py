"""The record of a run: result.json, what it depends on, and the lines that a test prints."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from npt import environment, files, identity
from npt.errors import NPTError, OtherRun
from npt.names import trainer_name
from npt.version import __version__

if TYPE_CHECKING:  # torch and numpy take seconds, and many programs only read records
    import numpy as np

RESULT = "result.json"
Results = dict[str, float | None]  # figures of a split by name; None: not computed
REQUIRED = {"trainer": str, "dataset": str, "config": dict, "classnames": list}  # entry -> type
TRAINING, EVALUATION = "training", "evaluation"  # the two kinds of records
# The line of a log before the last test: parsers of the CoOp family look for the one or the other.
END_OF_TRAINING = ("Finish training", "Finished training")


def describe(cfg: Any, classnames: list[str]) -> dict[str, Any]:
    """The entries of result.json that describe the run."""
    from npt.terms import headings

    return {
        "trainer": trainer_name(cfg),
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "config": identity.plain(cfg),
        "versions": versions(),
        "environment": environment.describe(),
        "classnames": classnames,
        "headings": headings(),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a result.json, atomically and with a checksum."""
    files.write_record(path, record)


def read(folder: Path) -> dict[str, Any]:
    """The content of `folder`/result.json; empty if there is none. NPTError if it is damaged."""
    path = folder / RESULT
    return files.read_record(path) if os.path.lexists(path) else {}


def of_run(folder: Path) -> dict[str, Any]:
    """The record in the folder of a run. NPTError if there is none, or it is damaged."""
    record = read(folder)
    if not record:
        why = f"has no {RESULT}" if folder.is_dir() else "is not a folder"
        raise NPTError(
            f"{folder} {why}: name the folder of a run, that train.py or `npt train` wrote"
        )
    return record


def check(record: Mapping[str, Any], place: str | os.PathLike[str]) -> None:
    """NPTError, naming `place`, if a record has not what every record of a run has."""
    for key, kind in REQUIRED.items():
        if not record.get(key) or not isinstance(record[key], kind):
            raise NPTError(
                f"the record of {place} has no {key}: it is not from this package, or was changed; "
                "copy the run again, or train again"
            )


def readable(folder: Path) -> dict[str, Any]:
    """As `read`, but empty, with a warning that names the file, if it is damaged."""
    try:
        return read(folder)
    except NPTError as error:
        warnings.warn(f"{error} It counts as missing.", stacklevel=2)
        return {}


def check_folder(folder: Path, cfg: Any, data: str | None = None) -> None:
    """Raise OtherRun if `folder` has the record of a run that is not a training with `cfg`.

    data: the checksum of its data (`identity.data_digest`), if it is known already
    """
    found = readable(folder)
    if found.get("task") == EVALUATION:
        raise OtherRun(f"{folder} has the results of an evaluation: {identity.WAYS_OUT}")
    if found:
        old = identity.flat({**found.get("config", {}), identity.DATA: found.get("data") or data})
        new = identity.flat({**identity.plain(cfg), identity.DATA: data or found.get("data")})
        identity.check(str(folder), old, new)


def place_of_evaluation(folder: Path, record: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The file for the record of an evaluation, and what that file says already.

    It is `folder`/result.json, unless that is damaged, or the record of a training or of another
    evaluation: then result-<data set>-<classes>-<checksum>.json beside it.
    """
    known = identity_of(record)
    found = readable(folder)
    free = not os.path.lexists(folder / RESULT) and not (folder / "resume").is_dir()
    if free or (found and identity_of(found) == known):
        return folder / RESULT, found
    checksum = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
    classes = record["config"]["DATASET"].get("SUBSAMPLE_CLASSES", "all")
    path = folder / f"result-{record['dataset']}-{classes}-{checksum}.json"
    with suppress(NPTError):  # damaged: it is written anew
        return path, files.read_record(path) if path.is_file() else {}
    return path, {}


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the figures of a record depend on."""
    config = identity.flat(record.get("config", {}))
    kept = {key: value for key, value in config.items() if key not in identity.FREE}
    return {**{key: record.get(key) for key in ("task", "data", "model")}, "config": kept}


def print_results(results: Results) -> None:
    """Print the figures of a test that follow the engine's own."""
    from npt.terms import MEASURES

    def percent(name: str) -> str:
        value = results.get(name)
        return "-" if value is None else f"{value:.1f}%"

    print(f"* class-mean accuracy: {percent('class_mean_accuracy')}")
    print(f"* many/medium/few accuracy: {' / '.join(map(percent, ('many', 'medium', 'few')))}")
    # No "accuracy: " in these lines: the family's parsers would take it for the accuracy.
    names = ("worst_class", "geometric_mean", "harmonic_mean")
    means = " / ".join(map(percent, names))
    print(f"* worst class / geometric mean / harmonic mean of the classes: {means}")
    temperature = results.get("temperature")
    scaled = f", at temperature {temperature:.3g}: {percent('ece_scaled')}" if temperature else ""
    print(f"* expected calibration error (ECE): {percent('ece')}{scaled}")
    for name in MEASURES:
        value = results.get(name)
        print(f"* {name}: {'-' if value is None else f'{value:.4f}'}")


def print_classes(per_class: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of the classes, those with the most training images first."""
    rows = sorted(per_class, key=lambda entry: -(entry["train_count"] or 0))
    columns = ("class", "train_count", "images", "accuracy")
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    print(
        tabulate(
            cells,
            headers=["class", "train images", "test images", "accuracy (%)"],
            colalign=("left", "right", "right", "right"),
            disable_numparse=True,  # of the class names
        )
    )


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def confusion_matrix(record: Mapping[str, Any], split: str = "test") -> np.ndarray:
    """The confusion matrix (K, K) of a split: rows are the true labels, columns the predictions.

        record = json.load(open("output/first/result.json"))
        matrix = npt.results.confusion_matrix(record)  # labels in the order of record["classnames"]

    NPTError if the record has no such split.
    """
    import numpy as np

    cells = record.get("confusion", {}).get(split)
    if cells is None:
        known = ", ".join(record.get("confusion", {})) or "none"
        raise NPTError(
            f'The record has no confusion of the split "{split}" (there are: {known}): choose '
            "another one, or test that split with this version of NPT."
        )
    size = 1 + max([len(record.get("classnames", ())) - 1, *(max(x[:2]) for x in cells)])
    matrix = np.zeros((size, size), dtype=np.int64)
    for label, predicted, images in cells:
        matrix[label, predicted] = images
    return matrix


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import torch

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
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process, and of torch on the GPU, in bytes."""
    import torch

    try:
        import resource
    except ImportError:  # Windows
        host = None
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return {"peak_memory_bytes": host, "peak_gpu_memory_bytes": gpu}
