"""DATASET.IMBALANCE_RATIO for every data set that the engine builds, of NPT or of a host."""

from __future__ import annotations

from collections import Counter
from typing import Any

from npt.imbalance import subsample


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
        if float(cfg.DATASET.get("IMBALANCE_RATIO", 1.0)) < 1:
            thin(dataset, cfg)
        return dataset

    data_manager.build_dataset = build_dataset


def thin(dataset: Any, cfg: Any) -> None:
    """Subsample the training images of `dataset` by the keys DATASET.IMBALANCE_*.

    The largest class keeps DATASET.NUM_SHOTS images, or all of them if that is below 1. A run
    without a seed (SEED below 0) uses seed 0 here, so the subsample is always reproducible. A data
    set whose training images are its test images (`tested_only`) does not change.
    """
    ratio = float(cfg.DATASET.IMBALANCE_RATIO)
    order = cfg.DATASET.get("IMBALANCE_ORDER", "label")
    before = dataset.train_x
    if not before or tested_only(dataset):
        return
    n_max = cfg.DATASET.NUM_SHOTS
    if n_max < 1:
        n_max = max(Counter(item.label for item in before).values())
    frequency = getattr(dataset, "class_frequency", None)  # counts before few-shot sampling
    after = subsample(before, ratio, n_max, max(cfg.SEED, 0), order, frequency)
    dataset._train_x = after
    sizes = Counter(item.label for item in after).values()
    print(
        f"Imbalance ratio {ratio:g} ({order} order): {len(before):,} -> {len(after):,} training "
        f"images, {max(sizes)} to {min(sizes)} a class"
    )


def tested_only(dataset: Any) -> bool:
    """Whether the data set is only for tests: its training images are its test images.

    CoOp's data sets for ImageNet-V2, -Sketch, -A and -R return their test images for both.
    """
    return dataset.train_x is dataset.test
