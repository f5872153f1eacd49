"""What the folder of a run says of its model: the record, the config, the checkpoint."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from npt import results
from npt.errors import NPTError
from npt.flags import recorded_cfg

if TYPE_CHECKING:
    from npt.trainers.base import PromptTrainer
    from npt.trainers.prompts import Classes


@dataclass(frozen=True)
class SavedRun:
    """A run on disk. `open` reads it; nothing of CLIP is loaded.

    folder: the folder that was named
    record: its result.json
    cfg: its config, frozen
    method: the class of its trainer
    model: the folder with its checkpoint: another one, if `folder` has only a test of it
    """

    folder: Path
    record: dict[str, Any]
    cfg: CfgNode
    method: type[PromptTrainer]
    model: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str], backbone: str = "") -> SavedRun:
        """The run in a folder.

        backbone: the CLIP to use in place of the one that its config names: the path of the same
            weights on this machine
        NPTError if the folder has no record of a run, a damaged one, or one of another version or
        of a trainer of another repository.
        """
        folder = Path(folder).expanduser()
        record = results.of_run(folder)
        results.check(record, folder)
        cfg = recorded_cfg(record, ["MODEL.BACKBONE.NAME", backbone] if backbone else [])
        return cls(folder, record, cfg, _method(record), _place_of_model(folder, record))

    @property
    def classes(self) -> Classes:
        """Its class names, and the template of its data set."""
        import npt.datasets
        from dassl.data.datasets import DATASET_REGISTRY
        from npt.trainers.prompts import TEMPLATE, Classes, template_of

        npt.datasets.add_to_registry()
        name = self.record["dataset"]
        known = name in DATASET_REGISTRY.registered_names()
        template = template_of(DATASET_REGISTRY.get(name)) if known else TEMPLATE
        return Classes(list(self.record["classnames"]), template)

    @property
    def is_training(self) -> bool:
        return self.record.get("task") == results.TRAINING

    @property
    def temperature(self) -> float:
        """That which its test fitted on the validation images; 1 if there were none."""
        return ((self.record.get("results") or {}).get("test") or {}).get("temperature") or 1.0

    @property
    def learns(self) -> bool:
        """Whether its method has a checkpoint (zero-shot CLIP has none)."""
        return bool(self.method.node)

    def checkpoint(self) -> tuple[dict[str, Any], str]:
        """The checkpoint and its path: the best one, else the newest. NPTError if there is none."""
        from npt.trainers.checkpoints import read

        if self.is_training and self.record.get("finished") is False:
            warnings.warn(
                f"The training in {self.folder} has not ended, so its model is one on the way: run "
                "its command again to finish it",
                stacklevel=2,
            )
        path = self.checkpoint_file()
        return read(path), path

    def checkpoint_file(self) -> str:
        """The path of the best checkpoint, else of the newest. NPTError if there is none."""
        from npt.trainers.checkpoints import checkpoint_file

        try:
            return checkpoint_file(str(self.model / self.method.model_name))
        except NPTError as error:
            raise NPTError(
                f"{self.model} has no model in {self.method.model_name}/: it was deleted or not "
                "copied, or its training has not come to a first checkpoint"
            ) from error


def _method(record: dict[str, Any]) -> type[PromptTrainer]:
    import npt.trainers
    from dassl.engine import TRAINER_REGISTRY
    from npt.trainers.base import PromptTrainer

    npt.trainers.add_to_registry()
    name = record.get("trainer", "")
    if name == "NPT":
        name = f"{record['config']['TRAINER']['NPT'].get('BASE')}NPT"
    known = name in TRAINER_REGISTRY.registered_names()
    method = TRAINER_REGISTRY.get(name) if known else None
    if not (isinstance(method, type) and issubclass(method, PromptTrainer)):
        raise NPTError(
            f"the run was made by the trainer {name}, which this package does not have: use the "
            "repository that has it"
        )
    return method


def _place_of_model(folder: Path, record: dict[str, Any]) -> Path:
    """The folder of the training; of an evaluation it may lie beside, if both were moved."""
    if record.get("task") == results.TRAINING or not (record.get("model") or {}).get("folder"):
        return folder
    then = Path(record["model"]["folder"])
    beside = folder.parent / then.name
    return beside if not then.is_dir() and beside.is_dir() else then
