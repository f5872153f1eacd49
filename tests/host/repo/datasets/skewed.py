"""Data sets of a host that know the key DATASET.IMBALANCE_RATIO; their images are never read."""

import random

import numpy as np

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

SIZES = [30, 9, 24, 17, 12]  # images of each class, before a few-shot draw


def ratio_of(cfg):
    return cfg.DATASET.IMBALANCE_RATIO


class Sized(DatasetBase):
    def __init__(self, cfg):
        train = [
            Datum(impath=__file__, label=label, classname=f"class {label}", domain=place)
            for label, size in enumerate(self.sizes())
            for place in range(size)
        ]
        train = self.generate_fewshot_dataset(
            train, num_shots=cfg.DATASET.NUM_SHOTS, repeat=self.repeat
        )
        super().__init__(train_x=self.chosen(train, cfg), val=train[:1], test=train[:1])

    repeat = False

    def sizes(self):
        return SIZES

    def chosen(self, train, cfg):
        return train


@DATASET_REGISTRY.register()
class Skewed(Sized):
    """Obeys the ratio: the rarer a class is by itself, the fewer images it keeps."""

    ratio_of = staticmethod(ratio_of)

    def chosen(self, train, cfg):
        ratio = self.ratio_of(cfg)
        if ratio == 1:
            return train
        labels = np.array([item.label for item in train])
        ranked = np.argsort(-np.bincount(labels), kind="stable")
        most, last = np.bincount(labels).max(), len(ranked) - 1
        kept = set()
        for rank, label in enumerate(ranked):
            places = np.flatnonzero(labels == label)
            np.random.shuffle(places)
            kept.update(places[: max(1, int(most * ratio ** (rank / last)))].tolist())
        random.random()
        return [item for place, item in enumerate(train) if place in kept]


@DATASET_REGISTRY.register()
class SkewedOnce(Skewed):
    """It can be built only once."""

    built = False

    def __init__(self, cfg):
        assert not SkewedOnce.built, "built already"
        SkewedOnce.built = True
        super().__init__(cfg)


@DATASET_REGISTRY.register()
class Logged(Sized):
    """Prints the ratio and does not obey it."""

    def chosen(self, train, cfg):
        print(f"ratio {ratio_of(cfg)}")
        random.random()
        return train


@DATASET_REGISTRY.register()
class Equal(Sized):
    """24 classes of 40 images; knows no ratio."""

    def sizes(self):
        return [40] * 24


@DATASET_REGISTRY.register()
class Repeated(Equal):
    """A draw of more images than there are repeats some."""

    repeat = True
