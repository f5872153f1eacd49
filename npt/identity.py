"""What makes a run: the configuration and the data that its figures depend on.

A folder and a checkpoint carry the configuration of their run. A command with another one is
refused there, so that a figure on record is always the figure of its command.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

from npt.backbones import sources
from npt.config import KEYS
from npt.errors import OtherRun
from npt.files import file_digest
from npt.names import TrainerNode

# Keys that change no figure. DATASET.ROOT: the data are compared instead (`data_digest`).
FREE = {
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.PRINT_FREQ",
    "TRAIN.WANDB",
    "TEST.COMPUTE_CMAT",
    "TEST.PER_CLASS_RESULT",
    "TEST.SPLIT",  # every split has figures of its own
}
DATA = "DATA"  # an entry beside the keys: the checksum of the data
WAYS_OUT = "use another --output-dir, or --overwrite to delete what is there and start anew"
UNSET = "(unset)"
WEIGHTS = ("MODEL.BACKBONE.NAME", "MODEL.INIT_WEIGHTS")  # keys that may name files
MOST_SIZES = 20_000  # images whose file sizes are read


def plain(node: Any) -> Any:
    """A config tree as values that JSON and checkpoints can hold, with the name asked for."""
    if isinstance(node, TrainerNode):
        node = node.shown()
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return str(node)
    return node if isinstance(node, (bool, int, float, str, type(None))) else str(node)


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested config of plain values as full key -> value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, Mapping)
        found |= flat(value, f"{above}{name}.") if inside else {f"{above}{name}": value}
    return found


def data_digest(dataset: Any, cfg: Any = None) -> str:
    """A checksum of the lists of a data set, and of the weights files that a config names.

    The lists are labels, class names, and files relative to their folder: it does not matter where
    the data are. Of the content of images only the sizes of few-shot files are part of it.
    """
    items = [
        (part, item) for part in ("train_x", "train_u", "val", "test")
        for item in getattr(dataset, part, None) or ()
    ]  # fmt: skip
    paths = [os.path.abspath(getattr(item, "impath", "")) for _, item in items]
    folder = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    digest = hashlib.sha256(repr(list(getattr(dataset, "classnames", ()))).encode())
    few = sum(part != "test" for part, _ in items) <= MOST_SIZES
    for (part, item), path in zip(items, paths, strict=True):
        name = getattr(item, "classname", "")
        size = os.path.getsize(path) if few and part != "test" and os.path.isfile(path) else ""
        line = f"{part}\0{path[len(folder) :]}\0{item.label}\0{name}\0{size}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    if cfg is not None:
        backbone, weights = (str(flat(plain(cfg)).get(key) or "") for key in WEIGHTS)
        # OpenAI's models and "tiny" are always the same.
        digest.update(("" if sources.is_fixed(backbone) else sources.digest_of(backbone)).encode())
        digest.update(file_digest(weights).encode())
    return digest.hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys on which two flat configs differ, as "KEY old there, new here".

    Keys that change no figure are not compared. A key that one of both lacks has its default there.
    """
    found = []
    for key in [*new, *(key for key in old if key not in new)]:
        default = plain(KEYS[key].default) if key in KEYS else UNSET
        before, now = old.get(key, default), new.get(key, default)
        if key in FREE or before == now:
            continue
        if key == DATA:
            unseeded = new.get("SEED", 0) < 0 and "; without --seed they are drawn anew each time"
            found.append(f"other images, classes or weights files{unseeded or ''}")
        else:
            found.append(f"{key} {_shown(before)} there, {_shown(now)} here")
    return found


def check(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise OtherRun if the flat config `old`, of the run at `where`, is another one than `new`."""
    found = differences(old, new)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise OtherRun(
            f"{where} is of a run with another configuration ({'; '.join(found[:3])}{more}): "
            f"{WAYS_OUT}"
        )


def _shown(value: Any) -> str:
    text = repr(value) if value != "" else '""'
    return text if len(text) <= 60 else text[:57] + "..."
