"""Reads experiments from yaml files. Fields of a file:

    title             one line, printed when the experiment runs
    protocol          a name in PROTOCOLS, or a list of {name, classes[, data]} as in PROTOCOLS
    trainers          label -> {config[, trainer][, opts][, train: false][, grid: false]
                      [, published][, transfer]}, or a list of labels of the file methods.yaml
                      beside this one
    variants          words -> config keys and values: every trainer that learns is run once with
                      each, under its label and these words ("" for the trainer as it is)
    datasets          names of configs/datasets/*.yaml, or paths of such files
    targets           data sets that a transfer protocol tests on
    ratios, seeds     imbalance ratios (tau) and seeds
    shots             images of the largest class
    settings          `published`: train with the config `published` of a trainer, where it has one;
                      `paper`: never; empty: at tau 1 only
    opts              config keys and values for every run
    grid              config key -> list of values; every combination is run for every trainer
    control           true: below tau 1, every trained method has a control in addition, the row
                      "METHOD (same budget)": as many training images in all, divided equally among
                      the classes (DATASET.IMBALANCE_TYPE balanced_budget). No points of a grid
    evaluate          splits to test: [test], or [val, test]
    keep_checkpoints  false: delete models and event files after all tests
    parts             name -> fields that differ from those above; each part has runs of its own
    report            how the results are shown: a kind of `npt.experiments.report`

`transfer` of a trainer has fields that replace its others when it is tested on other data sets.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from npt.config import find_config
from npt.errors import NPTError
from npt.experiments.plan import (
    PAPER,
    PROTOCOLS,
    PUBLISHED,
    Entries,
    Experiment,
    Part,
    Spec,
    dataset_name,
)
from npt.experiments.training_sets import NATURAL, PAPERS, TYPE
from npt.yaml_file import read_value, read_yaml

METHODS = "methods.yaml"
SHOTS = "DATASET.NUM_SHOTS"  # on the command line, the field `shots`
TRAINER_FIELDS: dict[str, type] = {
    "config": str,
    "trainer": str,
    "opts": dict,
    "train": bool,
    "grid": bool,
    "published": str,
    "transfer": dict,
}
ALL_IMAGES = -1  # as DATASET.NUM_SHOTS
OF_EXPERIMENT = ("parts", "report")  # fields beside those of a part
VARIANTS = "variants"  # a field of a part that is resolved into trainers
OF_A_RUN = {  # config keys that follow from fields -> what to set instead
    "DATASET.IMBALANCE_RATIO": "ratios",
    "DATASET.NAME": "datasets",
    "DATASET.NUM_SHOTS": "shots",
    "DATASET.SUBSAMPLE_CLASSES": "protocol",
    "OUTPUT_DIR": "--out",
    "RESUME": "nothing: a run goes on by itself",
    "SEED": "seeds",
    "TRAINER.NAME": "trainers",
}
KINDS: dict[type, str] = {  # for messages
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    str: "text",
}


@dataclass(frozen=True)
class Selection:
    """What to take of experiments; empty: all that they name.

    methods, datasets: those to keep of each part; a method with its variants. The data set that a
    transfer protocol trains on is always kept.
    added: methods of methods.yaml that every part without a grid has in addition
    ratios, seeds: instead of those that the experiment names for all its parts
    control: the field `control` of experiments that do not have it themselves
    """

    methods: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: str = ""
    control: bool = False
    opts: dict[str, str] = field(default_factory=dict)


def load_experiment(
    file: str | Path, overrides: Sequence[str] = (), selection: Selection | None = None
) -> Experiment:
    """Read the yaml file of an experiment; overrides are KEY VALUE pairs.

    A KEY in upper case is a config key for every run. A KEY in lower case is a field of the
    experiment (`seeds 1,2`, `datasets mini_shapes`); `trainers` selects trainers by label.
    """
    path = find_config(file)
    values = read_yaml(path, "fields")
    chosen = selection or Selection()
    given = {"ratios": chosen.ratios, "seeds": chosen.seeds, "settings": chosen.settings}
    values |= {key: value for key, value in given.items() if value}
    if chosen.control:
        values.setdefault("control", chosen.control)
    _check_parts(values, str(path))
    _override(values, [*overrides, *(x for pair in chosen.opts.items() for x in pair)])
    experiment = check_experiment(values, str(path))
    if chosen.methods or chosen.added or chosen.datasets:
        parts = _selected(experiment.parts, chosen, path)
        experiment = replace(experiment, parts=parts)
    return experiment


def _override(values: dict[str, Any], overrides: list[str]) -> None:
    if len(overrides) % 2:
        raise NPTError(f"{overrides[-1]} at the end of the command line has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        if key.startswith("-"):
            raise NPTError(f"flags come before the KEY VALUE pairs: {key} is too late")
        if key == SHOTS:
            values["shots"] = read_value(text, f"the value of {key}")
            continue
        if key == key.upper():
            values["opts"] = {**(values.get("opts") or {}), key: text}
            continue
        value = read_value(text, f"the value of {key}")
        if isinstance(value, str) and "," in value:
            parts = filter(str.strip, value.split(","))
            value = [read_value(part, f"the value of {key}") for part in parts]
        for name, part in (values.get("parts") or {}).items():
            if key in part:
                raise NPTError(f"{key} is set by the part {name} of the experiment: edit it there")
        if key == "trainers":
            known = values.get("trainers") or {}
            chosen = value if isinstance(value, list) else [value]
            for label in chosen:
                if label not in known:
                    raise NPTError(
                        f"trainers: there is no label {label}; there are {', '.join(known)}"
                    )
            value = {x: known[x] for x in chosen} if isinstance(known, dict) else chosen
        values[key] = value


# --------------------------------------------------------------------------- selection
def methods_beside(path: Path) -> dict[str, Spec]:
    """The methods.yaml in the folder of an experiment's file; empty if there is none."""
    beside = path.parent / METHODS
    return _methods_in(beside, beside.stat().st_mtime_ns) if beside.is_file() else {}


@lru_cache
def _methods_in(path: Path, modified: int) -> dict[str, Spec]:
    return read_yaml(path, "methods")  # many experiments share it


def _selected(parts: Any, chosen: Selection, path: Path) -> dict[str, Part]:
    """The parts with the chosen methods and data sets; parts of which nothing is left are not."""
    known = methods_beside(path)
    check_known("methods", chosen.added, known)
    found = {}
    for name, part in parts.items():
        kept = labels_of(chosen.methods, part.trainers) if chosen.methods else list(part.trainers)
        kept += [x for x in chosen.added if not part.grid and x not in kept]
        specs = {**known, **part.trainers}
        part = replace(part, trainers={label: specs[label] for label in kept})
        part = _with_datasets(part, chosen.datasets)
        if part.trainers and part.datasets:
            found[name] = part
    return found


def labels_of(methods: Iterable[str], trainers: Iterable[str]) -> list[str]:
    """The labels of the methods, each with those of its variants: `MaPLe` and `MaPLe + NPT`."""
    labels = list(trainers)
    found = [x for method in methods for x in labels if x == method or x.startswith(f"{method} ")]
    return list(dict.fromkeys(found))


def _with_datasets(part: Part, chosen: Sequence[str]) -> Part:
    if not chosen:
        return part
    if part.targets:
        targets = _kept(part.targets, chosen)
        return replace(part, targets=targets, datasets=part.datasets if targets else ())
    return replace(part, datasets=_kept(part.datasets, chosen))


def _kept(datasets: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(x for x in datasets if dataset_name(x) in chosen or x in chosen)


def check_known(what: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    """NPTError, naming what there is, if one of the chosen names is not known."""
    known = list(dict.fromkeys(known))
    for name in chosen:
        if name not in known:
            words = {word.lower(): word for word in known}
            close = difflib.get_close_matches(name.lower(), words, n=1, cutoff=0.7)
            hint = f"did you mean {words[close[0]]}?" if close else f"there are {', '.join(known)}"
            raise NPTError(f"--{what} {name}: there is none of this name; {hint}")


# --------------------------------------------------------------------------- checking
def check_experiment(values: dict[str, Any], where: str) -> Experiment:
    """The experiment with these fields. NPTError if a field is unknown or not valid.

    where: the path of the file, for messages and for the methods.yaml beside it
    """
    own = {key: value for key, value in values.items() if key not in OF_EXPERIMENT}
    report = values.get("report", "")
    if not isinstance(report, str):
        raise NPTError(f"report in {where} must be text, not {report!r}")
    _check_parts(values, where)
    parts = values.get("parts", {"": {}})
    checked = {str(name): check_part({**own, **more}, where) for name, more in parts.items()}
    title = values.get("title") or ""
    return Experiment(Path(where).stem, title, checked, report)


def _check_parts(values: dict[str, Any], where: str) -> None:
    parts = values.get("parts", {"": {}})
    if not isinstance(parts, dict) or not parts:
        raise NPTError(f"parts in {where} must be a mapping of names to fields")
    for name, more in parts.items():
        if not isinstance(more, dict):
            raise NPTError(f"parts.{name} in {where} must be a mapping of fields, not {more!r}")


def check_part(values: dict[str, Any], where: str) -> Part:
    """The part with these fields. NPTError if a field is unknown or not valid."""
    known = [*(f.name for f in fields(Part)), VARIANTS]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), [*known, *OF_EXPERIMENT], n=1)
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
    for key in ("trainers", "datasets", "ratios", "seeds"):
        if not checked.get(key, key == "seeds"):
            raise NPTError(f"{where} has no {key}: name at least one")
    if isinstance(checked["trainers"], list):
        checked["trainers"] = _from_methods(checked["trainers"], where)
    for key, kind in {
        "trainers": dict,
        "opts": dict,
        "grid": dict,
        "shots": int,
        "control": bool,
        "keep_checkpoints": bool,
        "settings": str,
        "title": str,
    }.items():
        if key in checked and not isinstance(checked[key], kind):
            raise NPTError(f"{key} in {where} must be {KINDS[kind]}, not {checked[key]!r}")
    if checked.get("settings", "") not in ("", PAPER, PUBLISHED):
        raise NPTError(f"settings in {where} must be {PAPER} or {PUBLISHED}")
    if checked.get("shots", 1) < 1 and checked["shots"] != ALL_IMAGES:
        raise NPTError(
            f"shots in {where} must be at least 1, or {ALL_IMAGES} for all, not {checked['shots']}"
        )
    for key, options in checked.get("grid", {}).items():
        if not isinstance(options, list) or not options:
            raise NPTError(f"grid.{key} in {where} must be a list of values, not {options!r}")
    for label, spec in checked["trainers"].items():
        _check_trainer(label, spec, where)
    checked["trainers"] = _with_variants(checked["trainers"], checked.pop(VARIANTS, {}), where)
    _check_options(checked, where)
    for split in checked.get("evaluate", ()):
        if split not in ("val", "test"):
            raise NPTError(f"evaluate in {where} has the split {split}: use val or test")
    checked["protocol"] = _protocol(checked.get("protocol", "base_to_new"), where)
    part = Part(**checked)
    if any(e.get("data") == "targets" for e in part.entries) and not part.targets:
        raise NPTError(f"the protocol of {where} tests on other data sets: name them in targets")
    return part


def _check_options(checked: dict[str, Any], where: str) -> None:
    """Raise NPTError if a config key would change what a run is called, or which method it is."""
    specs = checked["trainers"].values()
    own = [checked.get("grid", {})]  # what methods differ in
    own += [opts for x in specs for opts in (x.get("opts"), x.get("transfer", {}).get("opts"))]
    own = [opts for opts in own if opts]
    given = checked.get("opts", {})
    for key in itertools.chain(given, *own):
        if key in OF_A_RUN:
            raise NPTError(f"{key} is not an option of {where}: set {OF_A_RUN[key]}")
    for key in given:
        if any(key in opts for opts in own):
            raise NPTError(
                f"{key} cannot be given for every run of {where}: methods differ in it there"
            )
    _check_types([given, *own], checked, where)


def _check_types(groups: Sequence[dict[str, Any]], checked: dict[str, Any], where: str) -> None:
    """Raise NPTError for a type of imbalance that the ratios or the control do not go with.

    groups: config key -> value, or list of values
    """
    found = [opts[TYPE] for opts in groups if TYPE in opts]
    kinds = [kind for x in found for kind in (x if isinstance(x, list) else [x])]
    if kinds and checked.get("control"):
        raise NPTError(
            f"the control of {where} is that of the type of imbalance {PAPERS}: leave out {TYPE}, "
            "or the control"
        )
    others = [ratio for ratio in checked["ratios"] if ratio != 1]
    if NATURAL in kinds and others:
        raise NPTError(
            f"{TYPE} {NATURAL} in {where} has the ratio of the data set itself: set ratios to 1, "
            f"not {others[0]:g}"
        )


def _from_methods(labels: list[Any], where: str) -> dict[str, Spec]:
    known = methods_beside(Path(where))
    for label in labels:
        if label not in known:
            raise NPTError(
                f"trainers in {where} has {label!r}, which is not in the {METHODS} beside it; "
                f"there are {', '.join(known)}"
            )
    return {label: known[label] for label in labels}


def _with_variants(trainers: dict[str, Spec], variants: Any, where: str) -> dict[str, Spec]:
    """Each trainer that learns with the config keys of each variant; variants: words -> keys."""
    is_mapping = isinstance(variants, dict)
    if not is_mapping or not all(isinstance(opts, dict) for opts in variants.values()):
        raise NPTError(f"variants in {where} must be a mapping of words to config keys and values")
    found: dict[str, Spec] = {}
    for label, spec in trainers.items():
        if not variants or not spec.get("train", True):
            found[label] = spec
            continue
        for words, opts in variants.items():
            name = " ".join([label, *str(words).split()])
            found[name] = {**spec, "opts": {**spec.get("opts", {}), **opts}}
    return found


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
    if "transfer" in spec:
        own = {key: value for key, value in spec.items() if key != "transfer"}
        _check_trainer(f"{label}.transfer", {**own, **spec["transfer"]}, where)


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
