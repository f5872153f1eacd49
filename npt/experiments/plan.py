"""What an experiment runs: its parts, their runs, and the folder of each run.

An experiment has one part or several. A part has a protocol (the evaluations after training),
trainers, data sets, imbalance ratios and seeds; each combination of them is a run. The folder of a
run follows from what it is, not from the experiment: the same run of two experiments is one run.
`npt.experiments.reading` makes experiments from yaml files and documents their fields.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from npt import identity
from npt.errors import NPTError
from npt.experiments.training_sets import (
    BALANCED,
    CONTROL,
    PAPERS,
    TYPE,
    changes_nothing,
    labelled,
)
from npt.flags import parse_args, setup_cfg

Entries = tuple[dict[str, str], ...]  # the evaluations of a protocol
Spec = dict[str, Any]  # a trainer of an experiment: the fields `TRAINER_FIELDS` of reading.py
Variant = dict[str, Any]  # the fields of a Run that depend on the trainer

# The evaluations after training. Training uses the data and classes of the first one. An entry with
# `data: targets` is one evaluation for each data set in the part's `targets`.
TRANSFER: Entries = (
    {"name": "source", "classes": "all"},
    {"name": "targets", "classes": "all", "data": "targets"},
)
PROTOCOLS: dict[str, Entries] = {
    "base_to_new": ({"name": "base", "classes": "base"}, {"name": "new", "classes": "new"}),
    "cross_dataset": TRANSFER,
    "domain_generalisation": TRANSFER,
}
PAPER, PUBLISHED = "paper", "published"  # whose settings a trainer is trained with


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

    method: str  # its name in the experiment
    trainer: str
    config: str
    dataset: str
    ratio: float
    seed: int
    shots: int
    train: bool
    setting: str  # PAPER or PUBLISHED, with a note if keys are changed; "" without training
    evaluations: tuple[Evaluation, ...]
    opts: tuple[tuple[str, Any], ...]
    params: tuple[tuple[str, Any], ...]  # the opts that come from the grid
    keep_checkpoints: bool
    position: int  # index among the part's trainers, for the order in tables
    out: Path

    @property
    def label(self) -> str:
        name = " ".join([self.method, *_words(dict(self.params))])
        return labelled(name, dict(self.opts).get(TYPE, PAPERS))

    @property
    def name(self) -> str:
        return f"{dataset_name(self.dataset)} tau {self.ratio:g} {self.label} seed {self.seed}"

    @cached_property
    def folder(self) -> Path:
        """The folder in `out` of every run with this configuration and training data."""
        method = f"{self.trainer}-{Path(self.config).stem}-{self._digest()}"
        training = self.evaluations[0].name
        where = self.out / dataset_name(self.dataset) / training / f"shots_{self.shots}"
        return where / f"tau_{self.ratio:g}" / method / f"seed{self.seed}"

    def _digest(self) -> str:
        argv = self._flags(self.evaluations[0])
        # Without the seed, which has a folder of its own: all seeds share the answer.
        return _digest_of_config(tuple(argv))

    def output(self, evaluation: Evaluation) -> Path:
        return self.folder / evaluation.name

    def argv(self, evaluation: Evaluation) -> list[str]:
        """The command line of train.py for this run with an evaluation's data and classes."""
        flags = ["--seed", str(self.seed), "--output-dir", str(self.output(evaluation))]
        if not self.train:
            flags += ["--eval-only"]
        elif evaluation != self.evaluations[0]:
            flags += ["--eval-only", "--model-dir", str(self.output(self.evaluations[0]))]
        return [*flags, *self._flags(evaluation)]

    def _flags(self, evaluation: Evaluation) -> list[str]:
        """The part of the command line that does not depend on the seed and on folders."""
        pairs = [
            ("DATASET.NUM_SHOTS", self.shots),
            ("DATASET.SUBSAMPLE_CLASSES", evaluation.classes),
            ("DATASET.IMBALANCE_RATIO", self.ratio),
            *self.opts,
        ]
        flags = ["--trainer", self.trainer, "--config-file", self.config]
        flags += ["--dataset-config-file", dataset_config(evaluation.dataset)]
        return flags + [str(x) for pair in pairs for x in pair]

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
            "setting": self.setting,
            "params": dict(self.params),
            "position": self.position,
            "commands": {
                e.name: shlex.join(["python", "train.py", *self.argv(e)]) for e in self.evaluations
            },
        }


@lru_cache(maxsize=4096)
def _digest_of_config(flags: tuple[str, ...]) -> str:
    """Eight digits that stand for a configuration: for its values that are not the defaults.

    So a key that a later version adds changes no folder. What cannot be read has the digits of its
    command line; the run itself says what is wrong.
    """
    from dassl.config import get_cfg_default

    try:
        config = identity.flat(identity.plain(setup_cfg(parse_args(flags))))
    except NPTError:
        config = dict.fromkeys(flags)
    default = identity.flat(identity.plain(get_cfg_default()))
    kept = {
        key: value
        for key, value in config.items()
        if key not in identity.FREE and value != default.get(key, identity.UNSET)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Part:
    """The checked fields of a part of an experiment; see `npt.experiments.reading`."""

    trainers: dict[str, Spec]
    datasets: tuple[str, ...]
    title: str = ""
    protocol: str | Entries = "base_to_new"
    targets: tuple[str, ...] = ()
    ratios: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (1,)
    shots: int = 16
    settings: str = ""
    opts: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    control: bool = False
    evaluate: tuple[str, ...] = ("test",)
    keep_checkpoints: bool = True

    @property
    def entries(self) -> Entries:
        """The evaluations of the protocol."""
        return PROTOCOLS[self.protocol] if isinstance(self.protocol, str) else self.protocol

    def runs(self, out: str | Path) -> list[Run]:
        """All runs, with folders in `out`. The trainers of the same setting are consecutive.

        Without training, ratios and seeds do not matter: such a run has ratio 1 and the first seed.
        Where the type of imbalance does not matter, runs that differ in it only are one run.
        NPTError if two runs have the same folder.
        """
        runs = [
            self._run(variant, dataset, ratio, seed, Path(out))
            for seed, ratio, dataset in itertools.product(self.seeds, self.ratios, self.datasets)
            for variant in _each_training_once(list(self._variants(ratio)), ratio)
            if variant["train"] or (ratio, seed) == (self.ratios[0], self.seeds[0])
        ]
        folders = [run.folder for run in runs]
        if len(set(folders)) < len(folders):
            raise NPTError(
                "two runs of the experiment would share a folder: remove the trainer, data set, "
                "ratio or seed that occurs twice"
            )
        return runs

    def _variants(self, ratio: float) -> Iterator[Variant]:
        """The variants of each trainer and grid point, and that of the control after its own."""
        keys = list(self.grid)
        points = [dict(zip(keys, p, strict=True)) for p in itertools.product(*self.grid.values())]
        position = itertools.count()
        for method, spec in self.trainers.items():
            config, setting = self._settings(spec, ratio)
            for point in points if spec.get("grid", True) else [{}]:
                variant = {
                    "position": next(position),
                    "method": method,
                    "trainer": spec.get("trainer", method),
                    "config": config,
                    "train": spec.get("train", True),
                    "setting": setting,
                    "opts": (*spec.get("opts", {}).items(), *point.items(), *self.opts.items()),
                    "params": tuple(point.items()),
                }
                yield variant
                if self.control and not point and variant["train"] and ratio < 1:
                    opts = (*variant["opts"], (TYPE, BALANCED))
                    yield {**variant, "method": method + CONTROL, "opts": opts}

    def _settings(self, spec: Spec, ratio: float) -> tuple[str, str]:
        """The config file of a trainer, and whose settings it has."""
        if any(entry.get("data") == "targets" for entry in self.entries):
            spec = {**spec, **spec.get("transfer", {})}
        if not spec.get("train", True):
            return spec["config"], ""
        # The paper's rows of other methods at tau 1 are those that their own papers published.
        chosen = self.settings or (PUBLISHED if ratio == 1 else PAPER)
        changed = ", with changed keys" * bool(set(self.opts) - identity.FREE)
        if chosen == PUBLISHED and PUBLISHED in spec:
            return spec[PUBLISHED], PUBLISHED + changed
        return spec["config"], PAPER + changed

    def _run(self, variant: Variant, dataset: str, ratio: float, seed: int, out: Path) -> Run:
        return Run(
            **variant,
            dataset=dataset,
            ratio=ratio if variant["train"] else 1.0,
            seed=seed,
            shots=self.shots,
            evaluations=tuple(self._evaluations(dataset)),
            keep_checkpoints=self.keep_checkpoints,
            out=out,
        )

    def _evaluations(self, dataset: str) -> Iterator[Evaluation]:
        for entry in self.entries:
            if entry.get("data", "own") == "own":
                yield Evaluation(entry["name"], dataset, entry["classes"], self.evaluate)
            else:  # target data sets have no validation images
                for target in self.targets:
                    yield Evaluation(dataset_name(target), target, entry["classes"], ("test",))


def _each_training_once(variants: Sequence[Variant], ratio: float) -> Iterator[Variant]:
    """The variants, without the types of imbalance that change nothing: of equal ones the first.

    A variant that names no type stays in any case.
    """

    def training(variant: Variant) -> str:
        return repr([variant[key] for key in ("trainer", "config", "opts")])

    seen = {training(variant) for variant in variants if TYPE not in dict(variant["opts"])}
    for variant in variants:
        kind = dict(variant["opts"]).get(TYPE)
        if kind is not None and changes_nothing(kind, ratio, variant["train"]):
            kept = {key: _without_type(variant[key]) for key in ("opts", "params")}
            variant = {**variant, **kept}
            if training(variant) in seen:
                continue
            seen.add(training(variant))
        yield variant


def _without_type(pairs: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(pair for pair in pairs if pair[0] != TYPE)


@dataclass(frozen=True)
class Experiment:
    """A table, a figure or a study: parts by name, and how it is reported."""

    name: str
    title: str
    parts: Mapping[str, Part]
    report: str = ""  # a kind of `npt.experiments.report`

    def runs(self, out: str | Path) -> list[Run]:
        return merge(run for part in self.parts.values() for run in part.runs(out))


def merge(runs: Iterable[Run]) -> list[Run]:
    """Each run once, with the evaluations of all that ask for it."""
    found: dict[Path, Run] = {}
    for run in runs:
        first = found.setdefault(run.folder, run)
        if first is not run:
            found[run.folder] = replace(
                first,
                evaluations=united(first.evaluations, run.evaluations),
                keep_checkpoints=first.keep_checkpoints or run.keep_checkpoints,
            )
    return list(found.values())


def united(*groups: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Each evaluation once, with the splits of all that ask for it."""
    found: dict[str, Evaluation] = {}
    for evaluation in itertools.chain(*groups):
        first = found.setdefault(evaluation.name, evaluation)
        splits = tuple(dict.fromkeys([*first.splits, *evaluation.splits]))
        found[evaluation.name] = replace(first, splits=splits)
    return tuple(found.values())


def dataset_name(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(".yaml") else dataset


def dataset_config(dataset: str) -> str:
    return dataset if dataset.endswith(".yaml") else f"configs/datasets/{dataset}.yaml"


def _words(point: dict[str, Any]) -> list[str]:
    """A point of the grid as words of a label: text values unchanged, numbers as `w1=0.3`."""
    names = {key: key.rpartition(".")[2].lower() for key in point}
    return [v if isinstance(v, str) else f"{names[key]}={v:g}" for key, v in point.items()]
