"""From an experiment's yaml to its runs.

An experiment is a protocol (what is tested after training), trainers, data sets, imbalance
ratios and seeds, and a run is one of their combinations. Fields of the yaml:

    title             one line, for tables
    protocol          a name of PROTOCOLS, or a list of {name, classes[, data]} as there
    trainers          label -> {config[, trainer][, opts][, train: false][, grid: false]}
    datasets          names of configs/datasets/*.yaml, or paths of such files
    targets           data sets that a transfer protocol tests on
    ratios, seeds     imbalance ratios (tau) and seeds
    shots             images of the largest class
    opts              config keys and values of every run
    grid              config key -> list of values; every combination is a trainer of its own
    evaluate          splits to test: [test], or [val, test]
    keep_checkpoints  false deletes models and event files once everything is tested
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

import yaml

from npt.config import find_config, read_yaml
from npt.errors import NPTError

# What is tested after training; training takes data and classes of the first entry. `targets`
# stands for one evaluation on each data set of the experiment's `targets`.
TRANSFER = (
    {"name": "source", "classes": "all"},
    {"name": "targets", "classes": "all", "data": "targets"},
)
PROTOCOLS: dict[str, tuple[dict[str, str], ...]] = {
    "base_to_new": ({"name": "base", "classes": "base"}, {"name": "new", "classes": "new"}),
    "cross_dataset": TRANSFER,
    "domain_generalisation": TRANSFER,
}
TRAINER_FIELDS = {"config": str, "trainer": str, "opts": dict, "train": bool, "grid": bool}


@dataclass(frozen=True)
class Evaluation:
    """A test after training: its name, its data set and classes, and the splits."""

    name: str
    dataset: str
    classes: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training with its evaluations, in one folder with a subfolder per evaluation."""

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
    params: tuple[tuple[str, Any], ...]  # the grid's part of the opts
    keep_checkpoints: bool
    position: int  # among the experiment's trainers, for the order of tables
    folder: Path

    @property
    def name(self) -> str:
        return f"{dataset_name(self.dataset)} tau {self.ratio:g} {self.label} seed {self.seed}"

    def output(self, evaluation: Evaluation) -> Path:
        return self.folder / evaluation.name

    def argv(self, evaluation: Evaluation) -> list[str]:
        """The command line of train.py for this run on an evaluation's data and classes."""
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
        """What run.json holds: the run's coordinates, and the command of each evaluation."""
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
            "commands": {
                e.name: shlex.join(["python", "train.py", *self.argv(e)]) for e in self.evaluations
            },
        }


def _digest(config: str) -> str:
    """The SHA-256 of a config file; empty where there is none, which a run itself complains of."""
    try:
        return hashlib.sha256(find_config(config).read_bytes()).hexdigest()
    except NPTError:
        return ""


@dataclass(frozen=True)
class Experiment:
    """The fields of an experiment's yaml, checked; see the module's first lines."""

    trainers: dict[str, dict[str, Any]]
    datasets: tuple[str, ...]
    title: str = ""
    protocol: str | tuple[dict[str, str], ...] = "base_to_new"
    targets: tuple[str, ...] = ()
    ratios: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (1,)
    shots: int = 16
    opts: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    evaluate: tuple[str, ...] = ("test",)
    keep_checkpoints: bool = True

    def runs(self, out: str | Path) -> list[Run]:
        """Every run, its folder under `out`; all trainers of one setting stand together."""
        runs = [
            self._run(variant, dataset, ratio, seed, Path(out))
            for seed, ratio, dataset in itertools.product(self.seeds, self.ratios, self.datasets)
            for variant in self._variants()
            if variant["train"] or seed == self.seeds[0]  # untrained: nothing depends on the seed
        ]
        folders = [run.folder for run in runs]
        if len(set(folders)) < len(folders):
            raise NPTError(
                "two runs of the experiment would share a folder: a label, data set, "
                "ratio or seed stands there twice"
            )
        return runs

    def _variants(self) -> Iterator[dict[str, Any]]:
        """Every trainer, once for each point of the grid that it takes part in."""
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
        named = isinstance(self.protocol, str)
        for entry in PROTOCOLS[self.protocol] if named else self.protocol:
            if entry.get("data", "own") == "own":
                yield Evaluation(entry["name"], dataset, entry["classes"], self.evaluate)
            else:  # other data sets of the kind have no validation images
                for target in self.targets:
                    yield Evaluation(dataset_name(target), target, entry["classes"], ("test",))


def dataset_name(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(".yaml") else dataset


def dataset_config(dataset: str) -> str:
    return dataset if dataset.endswith(".yaml") else f"configs/datasets/{dataset}.yaml"


def _words(point: dict[str, Any]) -> list[str]:
    """A grid point for people: names as they are, numbers as `w1=0.3`."""
    last = {key: key.rpartition(".")[2].lower() for key in point}
    return [v if isinstance(v, str) else f"{last[key]}={v:g}" for key, v in point.items()]


# --------------------------------------------------------------------------- reading
def load_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment's yaml; overrides are KEY VALUE pairs.

    A KEY in capitals is a config key of every run; one in small letters is a field of the
    experiment (`seeds 1,2`, `datasets mini_shapes`), where `trainers` selects by label.
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
        value = yaml.safe_load(text)
        if isinstance(value, str) and "," in value:
            value = [yaml.safe_load(part) for part in value.split(",") if part.strip()]
        if key == "trainers":
            known = values.get("trainers") or {}
            chosen = value if isinstance(value, list) else [value]
            for label in chosen:
                if label not in known:
                    raise NPTError(f"no trainer is labelled {label}; there are {', '.join(known)}")
            value = {label: known[label] for label in chosen}
        values[key] = value


def check_experiment(values: dict[str, Any], where: str) -> Experiment:
    """The experiment that a mapping describes, or a sentence about what is wrong with it."""
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
    for key, kind in kinds.items():
        if key in checked:
            checked[key] = _sequence(key, checked[key], kind, where)
    checked["ratios"] = tuple(float(r) for r in checked.get("ratios", (1.0,)))
    for key in ("trainers", "datasets"):
        if not checked.get(key):
            raise NPTError(f"{where} names no {key}")
    for key, kind in {
        "trainers": dict,
        "opts": dict,
        "grid": dict,
        "shots": int,
        "keep_checkpoints": bool,
        "title": str,
    }.items():
        if key in checked and not isinstance(checked[key], kind):
            raise NPTError(f"{key} in {where} must be a {kind.__name__}, not {checked[key]!r}")
    for key, options in checked.get("grid", {}).items():
        if not isinstance(options, list) or not options:
            raise NPTError(f"grid.{key} in {where} must be a list of values, not {options!r}")
    for label, spec in checked["trainers"].items():
        _check_trainer(label, spec, where)
    for split in checked.get("evaluate", ()):
        if split not in ("val", "test"):
            raise NPTError(f"evaluate in {where} knows the splits val and test, not {split}")
    checked["protocol"] = _protocol(checked.get("protocol", "base_to_new"), where)
    experiment = Experiment(**checked)
    entries = (
        PROTOCOLS[experiment.protocol]
        if isinstance(experiment.protocol, str)
        else experiment.protocol
    )
    if any(e.get("data") == "targets" for e in entries) and not experiment.targets:
        raise NPTError(f"the protocol of {where} tests on other data sets: name them in targets")
    return experiment


def _sequence(key: str, value: Any, kind: tuple[type, ...], where: str) -> tuple:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise NPTError(f"{key} in {where} holds {item!r}, which is no {kind[-1].__name__}")
    return items


def _check_trainer(label: str, spec: Any, where: str) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("config"), str):
        raise NPTError(f"trainers.{label} in {where} must name its config file: {{config: FILE}}")
    for key, value in spec.items():
        kind = TRAINER_FIELDS.get(key)
        if kind is None:
            raise NPTError(
                f"unknown field trainers.{label}.{key} in {where}; "
                f"there are {', '.join(TRAINER_FIELDS)}"
            )
        if not isinstance(value, kind):
            raise NPTError(f"trainers.{label}.{key} in {where} must be a {kind.__name__}")


def _protocol(value: Any, where: str) -> str | tuple[dict[str, str], ...]:
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
            f"protocol in {where} must be a name, or a list of {{name, classes}} that begins with "
            "one on the trained data set itself"
        )
    return entries
