"""The keys DATASET.IMBALANCE_* for every data set that the engine builds, of NPT or of a host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from npt.errors import NPTError
from npt.imbalance import subsample, summary_of_counts


def wrap_build_dataset() -> None:
    """Make the data manager thin the training set of every data set; repeating it changes nothing.

    This replaces `build_dataset` in the engine's data manager. The data set is thinned after it
    is built, so its class names and their number come from the complete data.
    """
    from dassl.data import data_manager

    build = data_manager.build_dataset
    if build.__module__ == __name__:
        return

    def build_dataset(cfg: Any) -> Any:
        dataset = build(cfg)
        thin(dataset, cfg)
        return dataset

    data_manager.build_dataset = build_dataset


def thin(dataset: Any, cfg: Any) -> None:
    """Subsample the training images of `dataset` by the keys DATASET.IMBALANCE_*.

    The largest class keeps DATASET.NUM_SHOTS images, or all of them if it has fewer or if that is
    below 1. A run without a seed (SEED below 0) uses seed 0 here, so the subsample is always
    reproducible. A data set whose training images are its test images (`tested_only`) does not
    change. The type "natural" needs the `class_frequency` of the data set, and no ratio: NPTError.
    """
    ratio = float(cfg.DATASET.get("IMBALANCE_RATIO", 1.0))
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
        f"{found['largest']} to {found['smallest']} a class\n"
        f"Ratio obtained: {found['ratio']:.3g}; classes with one image: {found['singles']}"
    )


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
