"""DATASET.IMBALANCE_RATIO for every data set that the engine builds, a host's as well as ours."""

from __future__ import annotations

from collections import Counter
from typing import Any

from npt.imbalance import subsample


def wrap_build_dataset() -> None:
    """Thin the training images of every data set that the data manager builds; safe to repeat.

    The engine's `build_dataset` is replaced where the data manager looks it up. The data set is
    complete by then, so class names and their number never come from what is left.
    """
    from dassl.data import data_manager

    build = data_manager.build_dataset
    if getattr(build, "thins", False):
        return

    def build_dataset(cfg: Any) -> Any:
        dataset = build(cfg)
        if float(cfg.DATASET.get("IMBALANCE_RATIO", 1.0)) < 1:
            thin(dataset, cfg)
        return dataset

    build_dataset.thins = True  # type: ignore[attr-defined]
    data_manager.build_dataset = build_dataset


def thin(dataset: Any, cfg: Any) -> None:
    """Subsample `dataset`'s training images as DATASET.IMBALANCE_* say; nothing else changes.

    The largest class has DATASET.NUM_SHOTS images, or all it has where that is not given. A run
    without a seed (SEED below 0) takes 0 here, so that the tail itself is always reproducible.
    Where the training images are the test images (`tested_only`), nothing is left out.
    """
    ratio = float(cfg.DATASET.IMBALANCE_RATIO)
    order = cfg.DATASET.get("IMBALANCE_ORDER", "label")
    before = dataset.train_x
    if not before or tested_only(dataset):
        return
    n_max = cfg.DATASET.NUM_SHOTS
    if n_max < 1:
        n_max = max(Counter(item.label for item in before).values())
    frequency = getattr(dataset, "class_frequency", None)  # counts before the few-shot draw
    after = subsample(before, ratio, n_max, max(cfg.SEED, 0), order, frequency)
    dataset._train_x = after
    sizes = Counter(item.label for item in after).values()
    print(
        f"Imbalance ratio {ratio:g} ({order} order): {len(before):,} -> {len(after):,} training "
        f"images, {max(sizes)} to {min(sizes)} a class"
    )


def tested_only(dataset: Any) -> bool:
    """Whether its test images stand for training images, as in the family's ImageNet variants."""
    return dataset.train_x is dataset.test
