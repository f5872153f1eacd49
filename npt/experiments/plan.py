"""Expands the yaml file of an experiment into its runs.

An experiment has a protocol (the evaluations after training), trainers, data sets, imbalance ratios
and seeds. Each combination of them is a run. Fields of the yaml file:

    title             one line, printed when the experiment runs
    protocol          a name in PROTOCOLS, or a list of {name, classes[, data]} as in PROTOCOLS
    trainers          label -> {config[, trainer][, opts][, train: false][, grid: false]}
    datasets          names of configs/datasets/*.yaml, or paths of such files
    targets           data sets that a transfer protocol tests on
    ratios, seeds     imbalance ratios (tau) and seeds
    shots             images of the largest class
    opts              config keys and values for every run
    grid              config key -> list of values; every combination is run for every trainer
    evaluate          splits to test: [test], or [val, test]
    keep_checkpoints  false: delete models and event files after all tests
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from npt.config import find_config
from npt.errors import NPTError
from npt.yaml_file import read_value, read_yaml

Entries = tuple[dict[str, str], ...]  # the evaluations of a protocol

# The evaluations after training. Training uses the data and classes of the first one. An entry with
# `data: targets` is one evaluation for each data set in the experiment's `targets`.
TRANSFER: Entries = (
    {"name": "source", "classes": "all"},
    {"name": "targets", "classes": "all", "data": "targets"},
)
PROTOCOLS: dict[str, Entries] = {
    "base_to_new": ({"name": "base", "classes": "base"}, {"name": "new", "classes": "new"}),
    "cross_dataset": TRANSFER,
    "domain_generalisation": TRANSFER,
}
TRAINER_FIELDS: dict[str, type] = {
    "config": str,
    "trainer": str,
    "opts": dict,
    "train": bool,
    "grid": bool,
}
KINDS: dict[type, str] = {  # for messages
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    str: "text",
}


@dataclass(frozen=True)
class Evaluation:
    """A test after training: its name, data set, classes and splits."""

    name: str
    dataset: str
    classes: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training with its evaluations. Its folder has a subfolder for each evaluation."""

    label: str
    trainer: str
    config: str
    dataset: str
    ratio: float
    seed: int
    shots: int
    train: bool
    evaluations: tuple[Evaluation, ...]
    opts: tuple[tuple[str, Any], ...]
    params: tuple[tuple[str, Any], ...]  # the opts that come from the grid
    keep_checkpoints: bool
    position: int  # index among the experiment's trainers, for the order in tables
    folder: Path

    @property
    def name(self) -> str:
        return f"{dataset_name(self.dataset)} tau {self.ratio:g} {self.label} seed {self.seed}"

    def output(self, evaluation: Evaluation) -> Path:
        return self.folder / evaluation.name

    def argv(self, evaluation: Evaluation) -> list[str]:
        """The command line of train.py for this run with an evaluation's data and classes."""
        pairs = [
            ("DATASET.NUM_SHOTS", self.shots),
            ("DATASET.SUBSAMPLE_CLASSES", evaluation.classes),
            ("DATASET.IMBALANCE_RATIO", self.ratio),
            *self.opts,
        ]
        first = self.evaluations[0]
        argv = ["--trainer", self.trainer, "--config-file", self.config]
        argv += ["--dataset-config-file", dataset_config(evaluation.dataset)]
        argv += ["--seed", str(self.seed), "--output-dir", str(self.output(evaluation))]
        if not self.train:
            argv += ["--eval-only"]
        elif evaluation != first:
            argv += ["--eval-only", "--model-dir", str(self.output(first))]
        return argv + [str(x) for pair in pairs for x in pair]

    def record(self) -> dict[str, Any]:
        """The content of run.json: the settings of the run, and the command of each evaluation."""
        return {
            "label": self.label,
            "trainer": self.trainer,
            "dataset": dataset_name(self.dataset),
            "ratio": self.ratio,
            "seed": self.seed,
            "shots": self.shots,
            "train": self.train,
            "params": dict(self.params),
            "position": self.position,
            "config": self.config,
            "config_sha256": _digest(self.config),
            "opts": {key: str(value) for key, value in self.opts},
            "data": {
                e.name: f"{e.classes} classes of {dataset_name(e.dataset)} "
                f"(sha256 {_digest(dataset_config(e.dataset))[:16]})"
                for e in self.evaluations
            },
            "commands": {
                e.name: shlex.join(["python", "train.py", *self.argv(e)]) for e in self.evaluations
            },
        }


def _digest(config: str) -> str:
    """The SHA-256 of a config file; "" if there is no file, which is an error in the run itself."""
    try:
        return hashlib.sha256(find_config(config).read_bytes()).hexdigest()
    except NPTError:
        return ""


@dataclass(frozen=True)
class Experiment:
    """The checked fields of an experiment's yaml file; see the docstring of this module."""

    trainers: dict[str, dict[str, Any]]
    datasets: tuple[str, ...]
    title: str = ""
    protocol: str | Entries = "base_to_new"
    targets: tuple[str, ...] = ()
    ratios: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (1,)
    shots: int = 16
    opts: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    evaluate: tuple[str, ...] = ("test",)
    keep_checkpoints: bool = True

    @property
    def entries(self) -> Entries:
        """The evaluations of the protocol."""
        return PROTOCOLS[self.protocol] if isinstance(self.protocol, str) else self.protocol

    def runs(self, out: str | Path) -> list[Run]:
        """All runs, with folders in `out`. The trainers of the same setting are consecutive.

        NPTError if two runs have the same folder.
        """
        runs = [
            self._run(variant, dataset, ratio, seed, Path(out))
            for seed, ratio, dataset in itertools.product(self.seeds, self.ratios, self.datasets)
            for variant in self._variants()
            if variant["train"] or seed == self.seeds[0]  # without training, seeds do not matter
        ]
        folders = [run.folder for run in runs]
        if len(set(folders)) < len(folders):
            raise NPTError(
                "two runs of the experiment would share a folder: remove the label, data set, "
                "ratio or seed that occurs twice"
            )
        return runs

    def _variants(self) -> Iterator[dict[str, Any]]:
        """The fields of a Run that depend on the trainer, for each trainer and grid point."""
        keys = list(self.grid)
        points = [dict(zip(keys, p, strict=True)) for p in itertools.product(*self.grid.values())]
        position = itertools.count()
        for label, spec in self.trainers.items():
            for point in points if spec.get("grid", True) else [{}]:
                yield {
                    "position": next(position),
                    "label": " ".join([label, *_words(point)]),
                    "trainer": spec.get("trainer", label),
                    "config": spec["config"],
                    "train": spec.get("train", True),
                    "opts": (*spec.get("opts", {}).items(), *point.items(), *self.opts.items()),
                    "params": tuple(point.items()),
                }

    def _run(self, variant: dict, dataset: str, ratio: float, seed: int, out: Path) -> Run:
        where = out / dataset_name(dataset) / f"shots_{self.shots}" / f"tau_{ratio:g}"
        return Run(
            **variant,
            dataset=dataset,
            ratio=ratio,
            seed=seed,
            shots=self.shots,
            evaluations=tuple(self._evaluations(dataset)),
            keep_checkpoints=self.keep_checkpoints,
            folder=where / variant["label"].replace(" ", "_") / f"seed{seed}",
        )

    def _evaluations(self, dataset: str) -> Iterator[Evaluation]:
        for entry in self.entries:
            if entry.get("data", "own") == "own":
                yield Evaluation(entry["name"], dataset, entry["classes"], self.evaluate)
            else:  # target data sets have no validation images
                for target in self.targets:
                    yield Evaluation(dataset_name(target), target, entry["classes"], ("test",))


def dataset_name(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(".yaml") else dataset


def dataset_config(dataset: str) -> str:
    return dataset if dataset.endswith(".yaml") else f"configs/datasets/{dataset}.yaml"


def _words(point: dict[str, Any]) -> list[str]:
    """A point of the grid as words of a label: text values unchanged, numbers as `w1=0.3`."""
    names = {key: key.rpartition(".")[2].lower() for key in point}
    return [v if isinstance(v, str) else f"{names[key]}={v:g}" for key, v in point.items()]


# --------------------------------------------------------------------------- reading
def load_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read the yaml file of an experiment; overrides are KEY VALUE pairs.

    A KEY in upper case is a config key for every run. A KEY in lower case is a field of the
    experiment (`seeds 1,2`, `datasets mini_shapes`); `trainers` selects trainers by label.
    """
    path = find_config(file)
    values = read_yaml(path, "fields")
    _override(values, list(overrides))
    return check_experiment(values, str(path))


def _override(values: dict[str, Any], overrides: list[str]) -> None:
    if len(overrides) % 2:
        raise NPTError(f"{overrides[-1]} at the end of the command line has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        if key.startswith("-"):
            raise NPTError(f"flags come before the KEY VALUE pairs: {key} is too late")
        if key == key.upper():
            values["opts"] = {**(values.get("opts") or {}), key: text}
            continue
        value = read_value(text, f"the value of {key}")
        if isinstance(value, str) and "," in value:
            parts = filter(str.strip, value.split(","))
            value = [read_value(part, f"the value of {key}") for part in parts]
        if key == "trainers":
            known = values.get("trainers") or {}
            chosen = value if isinstance(value, list) else [value]
            for label in chosen:
                if label not in known:
                    raise NPTError(
                        f"trainers: there is no label {label}; there are {', '.join(known)}"
                    )
            value = {label: known[label] for label in chosen}
        values[key] = value


def check_experiment(values: dict[str, Any], where: str) -> Experiment:
    """The experiment with these fields. NPTError if a field is unknown or not valid.

    where: the source of the fields, for the message
    """
    known = [f.name for f in fields(Experiment)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise NPTError(f"unknown field {key} in {where}; {hint}")
    kinds: dict[str, tuple[type, ...]] = {
        "datasets": (str,),
        "targets": (str,),
        "ratios": (int, float),
        "seeds": (int,),
        "evaluate": (str,),
    }
    checked = {key: value for key, value in values.items() if value is not None}
    for key, types in kinds.items():
        if key in checked:
            checked[key] = _sequence(key, checked[key], types, where)
    checked["ratios"] = tuple(float(r) for r in checked.get("ratios", (1.0,)))
    for key in ("trainers", "datasets"):
        if not checked.get(key):
            raise NPTError(f"{where} has no {key}: name at least one")
    for key, kind in {
        "trainers": dict,
        "opts": dict,
        "grid": dict,
        "shots": int,
        "keep_checkpoints": bool,
        "title": str,
    }.items():
        if key in checked and not isinstance(checked[key], kind):
            raise NPTError(f"{key} in {where} must be {KINDS[kind]}, not {checked[key]!r}")
    for key, options in checked.get("grid", {}).items():
        if not isinstance(options, list) or not options:
            raise NPTError(f"grid.{key} in {where} must be a list of values, not {options!r}")
    for label, spec in checked["trainers"].items():
        _check_trainer(label, spec, where)
    for split in checked.get("evaluate", ()):
        if split not in ("val", "test"):
            raise NPTError(f"evaluate in {where} has the split {split}: use val or test")
    checked["protocol"] = _protocol(checked.get("protocol", "base_to_new"), where)
    experiment = Experiment(**checked)
    if any(e.get("data") == "targets" for e in experiment.entries) and not experiment.targets:
        raise NPTError(f"the protocol of {where} tests on other data sets: name them in targets")
    return experiment


def _sequence(key: str, value: Any, kind: tuple[type, ...], where: str) -> tuple:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise NPTError(f"{key} in {where} has {item!r}, which is not {KINDS[kind[-1]]}")
    return items


def _check_trainer(label: str, spec: Any, where: str) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("config"), str):
        raise NPTError(f"trainers.{label} in {where} needs a config file: {{config: FILE}}")
    for key, value in spec.items():
        kind = TRAINER_FIELDS.get(key)
        if kind is None:
            raise NPTError(
                f"unknown field trainers.{label}.{key} in {where}; "
                f"there are {', '.join(TRAINER_FIELDS)}"
            )
        if not isinstance(value, kind):
            raise NPTError(f"trainers.{label}.{key} in {where} must be {KINDS[kind]}")


def _protocol(value: Any, where: str) -> str | Entries:
    if isinstance(value, str):
        if value not in PROTOCOLS:
            raise NPTError(f"unknown protocol {value} in {where}; there are {', '.join(PROTOCOLS)}")
        return value
    entries = tuple(value) if isinstance(value, list) else ()
    for entry in entries:
        if not isinstance(entry, dict) or not {"name", "classes"} <= set(entry):
            entries = ()
    if not entries or entries[0].get("data", "own") != "own":
        raise NPTError(
            f"protocol in {where} must be a name, or a list of {{name, classes}}; its first entry "
            "is also the training, so it cannot have data: targets"
        )
    return entries
