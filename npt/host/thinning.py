"""The keys DATASET.IMBALANCE_* for every data set that the engine builds, of NPT or of a host.

A host's data set may obey DATASET.IMBALANCE_RATIO itself, by a rule of its own; it is not thinned
again. It does if it reads the key while it is built, and has other class counts at another ratio.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from yacs.config import CfgNode

from npt.errors import NPTError
from npt.imbalance import imbalanced_counts, step_counts, subsample, summary_of_counts
from npt.names import check_taken
from npt.randomness import RandomState, random_state_kept

RATIO = "IMBALANCE_RATIO"
PROBES = (1.0, 1e-6)  # ratios at which one that obeys has other counts than at any between them
RULES = (imbalanced_counts, step_counts)
DEFAULTS = {"IMBALANCE_ORDER": "label", "IMBALANCE_TYPE": "exp"}


def wrap_build_dataset() -> None:
    """Make the data manager thin the training set of every data set; repeating it changes nothing.

    This replaces `build_dataset` in the engine's data manager. The data set is thinned after it
    is built, so its class names and their number come from the complete data.
    """
    from dassl.data import data_manager

    build = data_manager.build_dataset
    if build.__module__ == __name__:
        return

    def build_dataset(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        def built(cfg: Any) -> Any:
            return build(cfg, *args, **kwargs)

        check_taken(cfg)
        before = RandomState.now()
        with ratio_watched(cfg) as reads:
            dataset = built(cfg)
        if reads and _obeys(dataset, cfg, built, before):
            _tell_of_own_rule(dataset, cfg)
        else:
            thin(dataset, cfg)
        return dataset

    data_manager.build_dataset = build_dataset


# ---- data sets that obey the ratio themselves


class WatchedNode(CfgNode):
    """The node DATASET while a data set is built, and copies of it: notices reads of the ratio."""

    reads: list[bool] = []  # noqa: RUF012  of the class: copies share it

    def __getitem__(self, key: str) -> Any:
        if key == RATIO:
            self.reads.append(True)
        return super().__getitem__(key)

    def get(self, key: str, *default: Any) -> Any:
        return self[key] if key in self else super().get(key, *default)

    def items(self) -> Any:
        self.reads.append(True)
        return super().items()

    def values(self) -> Any:
        self.reads.append(True)
        return super().values()

    def __iter__(self) -> Iterator[str]:  # with a method of its own, dict(node) reads the keys
        return super().__iter__()


@contextmanager
def ratio_watched(cfg: Any) -> Iterator[list[bool]]:
    """Yield a list that is not empty once code has read the ratio, alone or with all keys.

    The config stays the same object; the node DATASET has a subclass of its class for this time.
    """
    node = cfg.DATASET
    if type(node) is not CfgNode:  # already watched, if a data set builds another one
        yield WatchedNode.reads
        return
    reads: list[bool] = []
    WatchedNode.reads = reads
    object.__setattr__(node, "__class__", WatchedNode)  # yacs' own setter takes keys only
    try:
        yield reads
    finally:
        object.__setattr__(node, "__class__", CfgNode)


def _obeys(dataset: Any, cfg: Any, build: Callable[[Any], Any], before: RandomState) -> bool:
    """Whether a data set, which has read the ratio, chooses its training images by it.

    If its class counts do not tell, it is built again at the `PROBES`, from the random state that
    there was `before`: it may keep all images at this ratio only because they are few. The output
    of these builds is hidden, and the random state is put back.
    """
    ratio, counts = float(cfg.DATASET.get(RATIO, 1.0)), class_counts(dataset)
    if ratio == 1 or not counts or tested_only(dataset):
        return False
    if cfg.DATASET.NUM_SHOTS >= 1 and _follows(counts, ratio):
        return True  # a few-shot draw alone gives no such counts
    return any(_counts_at(probe, cfg, build, before) != counts for probe in PROBES)


def _counts_at(
    ratio: float, cfg: Any, build: Callable[[Any], Any], before: RandomState
) -> list[int] | None:
    """The class counts of the data set at another ratio; None if it cannot be built."""
    other = cfg.clone()
    dict.__setitem__(other.DATASET, RATIO, ratio)  # it may be frozen
    with random_state_kept(), redirect_stdout(io.StringIO()):
        before.restore()
        try:
            return class_counts(build(other))
        except Exception:  # such as that of a data set which can be built only once
            return None


def _follows(counts: Sequence[int], ratio: float) -> bool:
    """Whether class counts are those of a usual rule, in any order of the classes."""
    ranked = sorted(counts, reverse=True)
    return any(rule(ranked[0], ratio, len(ranked)) == ranked for rule in RULES)


def _tell_of_own_rule(dataset: Any, cfg: Any) -> None:
    """Print the counts of such a data set; NPTError for a key that cannot act on it."""
    node = cfg.DATASET
    for key, default in DEFAULTS.items():
        if node.get(key, default) != default:
            raise NPTError(
                f"DATASET.{key} is {node[key]}, but the data set {node.NAME} of this repository "
                f"obeys DATASET.{RATIO} by a rule of its own, on which {key} has no effect: "
                "leave it out."
            )
    found = summary_of_counts(class_counts(dataset))
    print(
        f"Imbalance ratio {node[RATIO]:g}, by the data set {node.NAME} itself: {found['images']:,} "
        f"training images, {found['largest']} to {found['smallest']} a class\n{_obtained(found)}"
    )


# ---- all others


def thin(dataset: Any, cfg: Any) -> None:
    """Subsample the training images of `dataset` by the keys DATASET.IMBALANCE_*.

    The largest class keeps DATASET.NUM_SHOTS images, or all of them if it has fewer or if that is
    below 1. A run without a seed (SEED below 0) uses seed 0 here, so the subsample is always
    reproducible. A data set whose training images are its test images (`tested_only`) does not
    change. The type "natural" needs the `class_frequency` of the data set, and no ratio: NPTError.
    """
    ratio = float(cfg.DATASET.get(RATIO, 1.0))
    order = cfg.DATASET.get("IMBALANCE_ORDER", "label")
    kind = cfg.DATASET.get("IMBALANCE_TYPE", "exp")
    natural = kind == "natural"
    if natural and ratio != 1:
        raise NPTError(
            f"DATASET.IMBALANCE_RATIO is {ratio:g}, but the type natural takes the ratio of the "
            "data set itself: set IMBALANCE_RATIO to 1, or IMBALANCE_TYPE to another type."
        )
    before = dataset.train_x
    if (ratio == 1 and not natural) or not before or tested_only(dataset):
        return
    n_max, shots = max(class_counts(dataset)), cfg.DATASET.NUM_SHOTS
    frequency = class_frequency(dataset)
    if shots >= 1:
        n_max = min(n_max, shots)
        if natural and not all(frequency.get(item.label) for item in before):
            raise NPTError(
                f"The data set {cfg.DATASET.NAME} does not say how many images its classes have "
                "(it has no class_frequency), so IMBALANCE_TYPE natural cannot follow them: set "
                "DATASET.NUM_SHOTS to -1, which keeps all images, or choose another type."
            )
    elif natural:
        frequency = {}  # nothing was drawn: the images themselves are in proportion
    dataset._train_x = subsample(before, ratio, n_max, max(cfg.SEED, 0), order, frequency, kind)
    found = summary_of_counts(class_counts(dataset))
    asked = [] if kind == "exp" else [kind]
    asked += [] if natural else [f"ratio {ratio:g} ({order} order)"]
    print(
        f"Imbalance {', '.join(asked)}: {len(before):,} -> {found['images']:,} training images, "
        f"{found['largest']} to {found['smallest']} a class\n" + _obtained(found)
    )


def _obtained(found: Mapping[str, float]) -> str:
    return f"Ratio obtained: {found['ratio']:.3g}; classes with one image: {found['singles']}"


def class_counts(dataset: Any) -> list[int]:
    """The training images of each class, by label."""
    found = Counter(item.label for item in dataset.train_x)
    return [found[label] for label in range(dataset.num_classes)]


def class_frequency(dataset: Any) -> Mapping[int, int]:
    """Label -> training images before a few-shot draw; empty if the data set does not say it."""
    found = getattr(dataset, "class_frequency", None)
    return found if isinstance(found, Mapping) else {}


def tested_only(dataset: Any) -> bool:
    """Whether the data set is only for tests: its training images are its test images.

    CoOp's data sets for ImageNet-V2, -Sketch, -A and -R return their test images for both.
    """
    return dataset.train_x is dataset.test
