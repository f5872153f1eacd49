"""Config keys: their defaults and checks, and the merging of yaml files and KEY VALUE pairs.

`KEYS` is the table. It holds the keys of the package itself; the methods of `npt.trainers` and the
terms of `npt.terms` add theirs with `add`. The keys go into the engine's own default tree, where
any host finds them. The embedded engine has a table like it (`dassl.config.defaults.KEYS`); keys of
an installed Dassl are not checked, because a fork may give them another meaning. yacs compares the
types of nodes when files are merged, so nodes stay plain `CfgNode`s but for two: the root, whose
`freeze()` checks values and whose merging accepts `1` for `1.0`, and TRAINER (`npt.names`).
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from npt import engine
from npt.checks import LARGEST, SHOWN, TEXT, Check, is_text, like, number, one_of, shown, whole
from npt.errors import NPTError
from npt.imbalance import ORDERS, TYPES
from npt.names import SUFFIX, TrainerNode, adopt, as_asked, trainer_name
from npt.yaml_file import read_yaml


# --------------------------------------------------------------------------- keys
class Key(NamedTuple):
    """A config key. Without a check, any value of the default's type is good.

    meaning: one plain sentence, for docs/config.md
    acts_with: another key, and the values of it without which this key has no effect
    """

    default: Any
    meaning: str = ""
    check: Check | None = None
    acts_with: tuple[str, Check] | None = None

    def accepts(self, value: Any) -> bool:
        return self._check().good(value) or (value is None and self.default is None)

    def allowed(self) -> str:
        """The allowed values in words."""
        return self._check().allowed

    def _check(self) -> Check:
        return self.check or like(self.default)


WEIGHT = number(0, LARGEST)
REDUCTIONS = ("mean", "class", "sum")  # of npt.losses
ANCHORS = ("l1", "squared")  # distances of npt.losses
LENGTH = number(0, LARGEST, "(]")
RATIO = Check(number(0, 1, "(]").good, "a number in (0, 1]")
NOT_ONCE = ("RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler", "ClassBalancedSampler")
EACH_ONCE = Check(
    lambda value: is_text(value) and value not in NOT_ONCE,
    "SequentialSampler or RandomSampler: a test sees each image once",
)
PROJECT = Check(
    lambda value: (
        is_text(value)
        and len(value) <= 128
        and not set(value) & set("/\\#?%:")
        and value.lower() not in ("true", "false")
    ),
    r"the name of a project (128 characters, without / \ # ? % :), or empty",
)

KEYS: dict[str, Key] = {
    "TRAINER.NPT.E_W": Key(1.0, "squared length of text features in L_LC and L_MI", LENGTH),
    "TRAINER.NPT.E_H": Key(1.0, "squared length of image features in L_MI", LENGTH),
    "TRAINER.NPT.REDUCTION": Key(
        "mean",
        "of the sums of L_LC and L_MI: means, for L_LC the mean over classes of sums over the "
        "others, or sums as printed (docs/reduction.md)",
        one_of(*REDUCTIONS),
    ),
    "TRAINER.NPT.BASE": Key("", "the trainer that `--trainer NPT` wraps"),
    "MODEL.CLASS_CHUNK": Key(
        0, "classes that a training step takes at a time; 0: as many as memory allows", whole(0)
    ),
    "MODEL.PLAIN_ENCODERS": Key(
        False, "encoders compute all 77 tokens of every text, as usual, to compare with"
    ),
    "MODEL.LINEAR": Key(
        "auto",
        "frozen linear layers: torch, F.linear; onednn, on CPUs, on copies of the weights in its "
        "layout; auto: onednn in bfloat16 and for layers that are not narrow (docs/speed.md)",
        one_of("auto", "torch", "onednn"),
    ),
    "MODEL.ACCELERATE": Key(
        False, "NPT trainers of a host: compute the host's own encoders faster, to the same values"
    ),
    "MODEL.TF32": Key(
        False,
        "NVIDIA GPUs multiply float32 matrices in TF32; convolutions, as torch has it, always do "
        "(docs/gpu.md)",
    ),
    "DATASET.SUBSAMPLE_CLASSES": Key(
        "all",
        "the classes of the run: all, the first half (rounded up), or the others",
        one_of("all", "base", "new"),
    ),
    "DATASET.IMBALANCE_RATIO": Key(
        1.0, "tau: training images of the rarest class over those of the largest", RATIO
    ),
    "DATASET.IMBALANCE_ORDER": Key(
        "label",
        "which classes are the rare ones: those of high labels, random ones by the seed, or those "
        "with few images in the data set",
        one_of(*ORDERS),
    ),
    "DATASET.IMBALANCE_TYPE": Key(
        "exp",
        "how the images fall from class to class: exponentially, in one step, as in the data set, "
        "or not at all with as many images in total as exp keeps (docs/datasets.md)",
        one_of(*TYPES),
    ),
    "DATALOADER.TRAIN_X.BALANCE_POWER": Key(
        1.0,
        "ClassBalancedSampler: a class of n images is drawn in proportion to n^(1 - power)",
        number(0, 1),
        ("DATALOADER.TRAIN_X.SAMPLER", one_of("ClassBalancedSampler")),
    ),
    "INPUT.EXIF_ROTATE": Key(
        False,
        "turn images as their cameras noted in EXIF; on in custom_folder.yaml, and off for the "
        "papers' data sets, whose published figures are of images as they are stored",
    ),
    "TRAIN.WANDB": Key(
        "",
        "project of Weights & Biases that gets the scalars and results of a training, if wandb is "
        "installed (docs/progress.md); empty: none",
        PROJECT,
    ),
    # Keys of the engine, with what our trainers take of them.
    "DATALOADER.TEST.SAMPLER": Key("SequentialSampler", "the order of test images", EACH_ONCE),
    "INPUT.NO_TRANSFORM": Key(
        False,
        "images as they are in their files",
        Check(lambda v: v is False, "False: CLIP takes tensors"),
    ),
    "DATALOADER.K_TRANSFORMS": Key(
        1,
        "versions of each training image",
        Check(lambda v: v == 1, "1: CLIP takes one version"),
    ),
}
# What a host's own node TRAINER.NPT must have: the keys of the paper's loss.
PAPER_KEYS = tuple(f"TRAINER.NPT.{name}" for name in ("W1", "W2", "E_W", "E_H", "REDUCTION"))
RULES: list[Callable[[CfgNode], None]] = []  # further checks of a config that is frozen
# Only these are checked for every trainer. The others belong to our own trainers, which check
# them: a host may give the same name another meaning.
OF_ANY_TRAINER = (
    *("TRAINER.NPT.", "MODEL.", "DATASET.IMBALANCE", "INPUT.EXIF_ROTATE", "TRAIN.WANDB"),
    *("DATALOADER.TRAIN_X.", "DATALOADER.TEST."),
)
MISSING = object()
LONGEST_LITERAL = 10_000  # characters of a value on the command line that is read as Python


def add(path: str, key: Key) -> None:
    """Add a config key, also to the engine's defaults if they are imported already.

    A key that exists gets the new default. Configs copied from the defaults earlier do not change.
    """
    before, KEYS[path] = KEYS.get(path), key
    defaults = sys.modules.get("dassl.config.defaults")
    if defaults is None or not isinstance(defaults._C, CheckedRoot):
        return  # `add_keys_to_defaults` will add it
    node = _put(defaults._C, path, key.default)
    name = path.rpartition(".")[2]
    if before is not None and node[name] == before.default:
        node[name] = key.default


def keys_of_any_trainer() -> list[str]:
    """The keys whose values are checked whatever the trainer is."""
    return [path for path in KEYS if path.startswith(OF_ANY_TRAINER)]


def keys_of_method(node: str) -> list[str]:
    """The keys that a trainer of ours reads: those of its node TRAINER.<node>, and shared ones."""
    others = (f"TRAINER.{node}.", "TRAINER.NPT.")
    return [path for path in KEYS if not path.startswith("TRAINER.") or path.startswith(others)]


def setting(node: CfgNode, name: str) -> Any:
    """The value of TRAINER.NPT.<name> in its node, or its default if the node lacks it."""
    return node.get(name, KEYS[f"TRAINER.NPT.{name}"].default)


class BadValue(NPTError, ValueError):
    """A value that a config key does not take."""


def check(cfg: CfgNode, required: Sequence[str] = (), keys: Iterable[str] | None = None) -> None:
    """Raise NPTError for a bad value, or for a missing key of those that are `required`.

    Other missing keys have their defaults: a host may have replaced a node of ours by its own.
    """
    for path in KEYS if keys is None else keys:
        key = KEYS[path]
        if path in required and _find(cfg, path) is MISSING:
            raise NPTError(f"The config has no key {path}; set it to {key.allowed()}.")
        _check_value(cfg, path, key)


def check_engine(cfg: CfgNode) -> None:
    """Raise the embedded engine's InvalidValue for a bad value of one of its keys.

    An installed Dassl has no table of its keys.
    """
    if engine.describe().name != "embedded":
        return
    from dassl.config.defaults import KEYS as engine_keys
    from dassl.utils.errors import InvalidValue

    for path, row in engine_keys.items():
        _check_value(cfg, path, of_engine(row), InvalidValue)


def of_engine(row: Any) -> Key:
    """A row of the embedded engine's table as a Key."""
    default, meaning, *bounds, _ = row
    return Key(default, meaning, like(default, *bounds))


def _check_value(cfg: CfgNode, path: str, key: Key, error: type[Exception] = BadValue) -> None:
    value = _find(cfg, path)
    if value is not MISSING and not key.accepts(value):
        raise error(f"{path} is {shown(value)}, but it must be {key.allowed()}.")


def _find(cfg: CfgNode, path: str) -> Any:
    """The value at a dotted key, or MISSING where the tree has no such key."""
    node: Any = cfg
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return node


def _put(root: CfgNode, path: str, value: Any) -> CfgNode:
    """Set a key that is not there yet, with the nodes above it; returns the node it is in."""
    *above, name = path.split(".")
    node = root
    for part in above:
        if part not in node:
            node[part] = CfgNode()
        node = node[part]
    node.setdefault(name, value)
    return node


# --------------------------------------------------------------------------- the default tree
class BadConfig(NPTError, KeyError, ValueError, AssertionError):
    """A key or value that yacs rejects; also of the types that yacs raises, which hosts catch."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotes


class CheckedRoot(CfgNode):
    """The root of a config. `freeze` checks values, and merging accepts 1 for 1.0.

    Keys and values that yacs rejects while merging raise BadConfig.
    """

    def _immutable(self, is_immutable: bool) -> None:
        if is_immutable:
            self._restore()
            check_engine(self)
            check(self, keys=keys_of_any_trainer())
            _warn_of_no_acceleration(self)
            _warn_of_lonely_keys(self)
            for rule in RULES:
                rule(self)
        super()._immutable(is_immutable)

    def _restore(self) -> None:
        """Put back what a host has removed: the node TRAINER.NPT, and the class of TRAINER."""
        trainer = self.get("TRAINER")
        adopt(trainer)
        if isinstance(trainer, CfgNode) and "NPT" not in trainer:
            for path, key in KEYS.items():
                if path.startswith("TRAINER.NPT."):
                    _put(self, path, key.default)

    def dump(self, **options: Any) -> Any:
        return CfgNode.dump(as_asked(self), **options)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        self._restore()
        values = list(cfg_list)
        for place in range(1, len(values), 2):
            value = as_float(_find(self, values[place - 1]), self._decode_cfg_value(values[place]))
            if isinstance(value, float):
                values[place] = value
        with _yacs_errors():
            super().merge_from_list(values)

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        self._restore()
        with _yacs_errors():
            super().merge_from_other_cfg(_as_in(self, cfg_other))

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """As in yacs, except that nodes below the root become plain ones, or stay what they are.

        Text that Python cannot read as a value, however long or deep, stays text.
        """
        if isinstance(value, CfgNode):
            return value
        return CfgNode(value) if isinstance(value, dict) else literal(value)


@contextmanager
def _yacs_errors() -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, AssertionError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise BadConfig(f"the config cannot be merged: {reason}") from error


def add_keys_to_defaults() -> None:
    """Add all keys to the engine's default config; what a host has set is not overwritten."""
    from dassl.config import defaults

    root = defaults._C
    if type(root) is CfgNode:
        object.__setattr__(root, "__class__", CheckedRoot)  # yacs' own setter takes keys only
    adopt(root.get("TRAINER"))
    for path, key in KEYS.items():
        _put(root, path, key.default)


def _warn_of_lonely_keys(cfg: CfgNode) -> None:
    for path, key in KEYS.items():
        value = _find(cfg, path)
        if key.acts_with is None or value is MISSING or value == key.default:
            continue
        other, needed = key.acts_with
        if not needed.good(_find(cfg, other)):
            warnings.warn(
                f"{path} {shown(value)} has no effect: it acts only with {other} {needed.allowed}.",
                stacklevel=4,
            )


def _warn_of_no_acceleration(cfg: CfgNode) -> None:
    name = trainer_name(cfg)
    if _find(cfg, "MODEL.ACCELERATE") is True and name and not name.endswith(SUFFIX):
        warnings.warn(
            f"MODEL.ACCELERATE acts on NPT trainers and not on {name}: for {name} itself name "
            f"{name}NPT with TRAINER.NPT.W1 0 TRAINER.NPT.W2 0, or call npt.accelerate.",
            stacklevel=4,
        )


# --------------------------------------------------------------------------- merging
def as_float(old: Any, new: Any) -> Any:
    """`new`, as a float where it is a whole number and `old` is a float."""
    fits = isinstance(old, float) and type(new) is int and abs(new) <= LARGEST
    return float(new) if fits else new


def literal(text: Any) -> Any:
    """The Python value that a text writes out, or the text itself if it is none, or not a text."""
    if not isinstance(text, str) or len(text) > LONGEST_LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _as_in(tree: CfgNode, node: CfgNode) -> CfgNode:
    """A copy of `node` to merge into `tree`, with the node classes and the floats of the tree."""
    copy = type(tree)()
    given = node.shown() if isinstance(node, TrainerNode) else node
    for name, value in given.items():
        like = tree.get(name)
        if isinstance(value, CfgNode):
            value = _as_in(like if isinstance(like, CfgNode) else CfgNode(), value)
        dict.__setitem__(copy, name, as_float(like, value))  # as it is: TRAINER.NAME, too
    return copy


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of that name from here, else among the installed configs (`configs/` optional)."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise NPTError(f"'{name}' is a folder: name a config file in it")
    if not path.is_absolute():
        import npt.configs

        parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
        for home in npt.configs.__path__:
            installed = Path(home, *parts)
            if installed.is_file():
                return installed
    raise NPTError(f"there is no config file '{name}', neither from {Path.cwd()} nor among npt's")


def merge_file(cfg: CfgNode, name: str | os.PathLike[str]) -> set[str]:
    """Merge a yaml file (see `find_config` for where it is looked for); returns its full keys."""
    path = find_config(name)
    values = read_yaml(path, "config keys")
    _merge(cfg, cfg, values, str(path), "")
    return _full_keys(values)


def _full_keys(values: Any, above: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {above}
    inside = (_full_keys(x, f"{above}.{name}" if above else name) for name, x in values.items())
    return set().union(*inside)


def merge_pairs(cfg: CfgNode, pairs: Sequence[Any], where: str = "the command line") -> None:
    """Merge KEY VALUE KEY VALUE ..."""
    for word in pairs[::2]:
        if str(word).startswith("-"):
            raise NPTError(f"flags come before the KEY VALUE pairs: {word} is too late in {where}")
    if len(pairs) % 2:
        raise NPTError(f"the config key {pairs[-1]} at the end of {where} has no value")
    for path, value in zip(pairs[::2], pairs[1::2], strict=True):
        *above, name = str(path).split(".")
        node: Any = cfg
        for part in above:
            node = node.get(part) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or name not in node:
            raise _unknown_key(cfg, str(path), where)
        _merge(cfg, node, {name: value}, where, str(path)[: -len(name)])


def _merge(root: CfgNode, node: CfgNode, values: dict, where: str, prefix: str) -> None:
    """Merge a nested mapping into `node`, which is at `prefix` in `root`; `where` is its source."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name not in node:
            raise _unknown_key(root, path, where)
        if isinstance(node[name], CfgNode) and isinstance(value, dict):
            _merge(root, node[name], value, where, f"{path}.")
        else:
            node[name] = _typed(node[name], value, path, where)


def _typed(old: Any, new: Any, path: str, where: str) -> Any:
    """`new` converted to the type of `old`.

    Text is read as a Python literal where it is one, a whole number may stand for a float, a list
    for a tuple. NPTError where the type is another.
    """
    if isinstance(old, CfgNode):
        raise NPTError(
            f"config key {path} in {where} is a section, give its keys, not {shown(new)}"
        )
    if isinstance(new, str):
        value = literal(new)
        if isinstance(value, str) or not isinstance(old, str):
            new = value
    new = as_float(old, new)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return type(old)(new)
    if isinstance(new, str) and not is_text(new):
        raise NPTError(f"config key {path} in {where} is {shown(new)}, which is not {TEXT.allowed}")
    if type(new) is not type(old) and old is not None:
        kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        kind = kinds.get(type(old), "a list")
        raise NPTError(
            f"config key {path} in {where} takes {kind} such as {old!r}, not {shown(new)}"
        )
    return new


def _unknown_key(cfg: CfgNode, path: str, where: str) -> NPTError:
    known = list(_paths(cfg))
    path = path[:SHOWN]
    close = difflib.get_close_matches(path.upper(), known, n=1, cutoff=0.6)
    if not close:  # the same last word under another node
        last = path.upper().rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:1]
    hint = f"; did you mean {close[0]}?" if close else ""
    return NPTError(f"unknown config key {path} in {where}{hint}")


def _paths(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Every full key of a config, leaves and nodes."""
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _paths(value, f"{prefix}{name}.")
