"""Data loaders, built from the config."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import Dataset, SequentialSampler

from dassl.utils import read_image
from dassl.utils.errors import InvalidValue

from .datasets import Datum, build_dataset
from .samplers import build_sampler
from .seeding import SeededLoader, SeededSampler, current_seed, mixed, seeded
from .transforms import build_transform

SECONDS_TO_SERVE = 5.0  # for which a loader's worker lives on after a signal to stop


class DatasetWrapper(Dataset):
    """A list of Datum as a torch Dataset of {"img", "label", "domain", "impath", "index"}.

    With a list of transforms the images are "img", "img2", "img3", ..., one for each transform. In
    training with DATALOADER.K_TRANSFORMS = K above 1, each of them is a list of K random versions.
    DATALOADER.RETURN_IMG0 adds "img0", the image without augmentation.

    The random numbers of the transforms follow from the index and its seed (`Drawn`), or else from
    `seed`, which the loader sets in each epoch. Without a seed they come from the global
    generators.
    """

    seed: int | None = None

    def __init__(
        self,
        cfg,
        data_source: Sequence[Datum],
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm < 1:
            raise InvalidValue(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}: it must be 1 or more")
        if self.k_tfm > 1 and transform is None:
            raise InvalidValue(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform: "
                "set it to 1, or INPUT.NO_TRANSFORM to False"
            )

    @cached_property
    def to_tensor(self) -> Callable:
        """The transform of "img0": resize, and normalize if INPUT.TRANSFORMS has "normalize"."""
        import torchvision.transforms as T

        from .transforms.transforms import _normalize, image_size, interpolation_mode

        steps = [
            T.Resize(image_size(self.cfg), interpolation=interpolation_mode(self.cfg)),
            T.ToTensor(),
        ]
        if "normalize" in self.cfg.INPUT.TRANSFORMS:
            steps.append(_normalize(self.cfg)[1])
        return T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        seed, idx = getattr(idx, "seed", self.seed), int(idx)
        output = self.described(idx)
        image = self.read(output["impath"])
        with contextlib.nullcontext() if seed is None else seeded(mixed(seed, idx)):
            output.update(self._transformed(image))
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def described(self, idx: int) -> dict[str, Any]:
        """What is returned for an image beside its pixels; the file is not read."""
        item = self.data_source[idx]
        return {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }

    def _transformed(self, image) -> dict[str, Any]:
        """The transformed image as "img", or one image for each of several transforms."""
        if self.transform is None:
            return {"img": image}
        if not isinstance(self.transform, Sequence):
            return {"img": self._transform_image(self.transform, image)}
        return {
            "img" if i == 1 else f"img{i}": self._transform_image(transform, image)
            for i, transform in enumerate(self.transform, start=1)
        }

    def read(self, path: str) -> Any:
        """The image at `path`, in RGB, turned as INPUT.EXIF_ROTATE says."""
        return read_image(path, upright=self.cfg.INPUT.get("EXIF_ROTATE", False))

    def _transform_image(self, transform: Callable, image) -> Any:
        """The transformed image, or a list of K_TRANSFORMS versions if that is above 1."""
        views = [transform(image) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


def seed_worker(worker_id: int) -> None:
    """Prepare a worker process of a loader.

    Python and numpy are seeded with the seed that torch gave it. A signal that stops the run
    reaches all of its processes: a worker serves the step that the main process finishes, and ends.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # the main process was killed meanwhile, which torch would not notice
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end_soon)


def _end_soon(number: int, frame: Any) -> None:
    """End this process in some seconds, with the exit code that torch takes for no error."""
    timer = threading.Timer(SECONDS_TO_SERVE, os._exit, (0,))
    timer.daemon = True
    timer.start()


def build_data_loader(
    cfg,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | Sequence[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: type | None = None,
    drop_last: bool = True,
    seed: int | None = None,
) -> SeededLoader:
    """A data loader for a list of Datum.

    At most DATALOADER.NUM_WORKERS processes read its images, and fewer where each would have less
    than two batches of a pass. In training they serve all epochs.

    drop_last: in training, leave out the last batch if it does not fill up and is not the only one
    seed: of order and augmentation; by default, one from the state of torch's generator
    InvalidValue if the list is empty, or if no batch can be made with the keys under DATALOADER.
    """
    if not data_source:
        raise InvalidValue(
            f'The {"training" if is_train else "test"} list of the dataset "{cfg.DATASET.NAME}" is '
            "empty: check DATASET.ROOT and the dataset's files"
        )
    if batch_size < 1:
        raise InvalidValue(f"A BATCH_SIZE under DATALOADER is {batch_size}: it must be 1 or more")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise InvalidValue(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}: it must be 0 or more"
        )
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    if is_train or not isinstance(sampler, SequentialSampler):
        sampler = SeededSampler(sampler)
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    dataset = wrapper(cfg, data_source, transform=tfm, is_train=is_train)
    workers = min(cfg.DATALOADER.NUM_WORKERS, len(sampler) // batch_size // 2)
    loader = SeededLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0 and is_train and isinstance(dataset, DatasetWrapper),
        drop_last=is_train and drop_last and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        worker_init_fn=seed_worker,
        seed=current_seed() if seed is None else seed,
    )
    if len(loader) == 0:
        raise InvalidValue(
            f"The sampler {sampler_type} cannot make a batch of {batch_size} from "
            f"{len(data_source)} images: lower the BATCH_SIZE under DATALOADER"
        )
    return loader


def _shortened(names: Iterable[str], most: int = 10) -> str:
    """The first names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class DataManager:
    """The dataset named by DATASET.NAME, and its data loaders.

    Attributes: dataset, train_loader_x, train_loader_u, val_loader, test_loader, num_classes,
    num_source_domains, lab2cname. train_loader_u and val_loader are None if the dataset does not
    have that list.
    """

    def __init__(
        self,
        cfg,
        custom_tfm_train: Callable | Sequence[Callable] | None = None,
        custom_tfm_test: Callable | Sequence[Callable] | None = None,
        dataset_wrapper: type | None = None,
    ):
        dataset = build_dataset(cfg)
        tfm_train = self._transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = self._transform(cfg, custom_tfm_test, is_train=False)

        seed, number = current_seed(), itertools.count()  # the loaders have different seeds

        def training(source: Sequence[Datum], o) -> SeededLoader:
            return build_data_loader(
                cfg,
                sampler_type=o.SAMPLER,
                data_source=source,
                batch_size=o.BATCH_SIZE,
                n_domain=o.N_DOMAIN,
                n_ins=o.N_INS,
                tfm=tfm_train,
                is_train=True,
                dataset_wrapper=dataset_wrapper,
                drop_last=o.get("DROP_LAST", True),
                seed=mixed(seed, next(number)),
            )

        def testing(source: Sequence[Datum]) -> SeededLoader:
            return build_data_loader(
                cfg,
                sampler_type=cfg.DATALOADER.TEST.SAMPLER,
                data_source=source,
                batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
                seed=mixed(seed, next(number)),
            )

        o_x, o_u = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U
        self.train_loader_x = training(dataset.train_x, o_x)
        self.train_loader_u = None
        if dataset.train_u:
            self.train_loader_u = training(dataset.train_u, o_x if o_u.SAME_AS_X else o_u)
        self.val_loader = testing(dataset.val) if dataset.val else None
        self.test_loader = testing(dataset.test)

        self.dataset = dataset
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @staticmethod
    def _transform(cfg, custom: Any, is_train: bool) -> Any:
        if custom is None:
            return build_transform(cfg, is_train=is_train)
        print(f"* Using custom transform for {'training' if is_train else 'testing'}")
        return custom

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    def show_dataset_summary(self, cfg) -> None:
        """Print a table with the number of classes and images of the dataset."""
        dataset = self.dataset
        rows: list[list[Any]] = [["Dataset", cfg.DATASET.NAME]]
        for title, domains in [
            ("Source", cfg.DATASET.SOURCE_DOMAINS),
            ("Target", cfg.DATASET.TARGET_DOMAINS),
        ]:
            if domains:
                rows.append([title, list(domains)])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for title, items in [
            ("# train_x", dataset.train_x),
            ("# train_u", dataset.train_u),
            ("# val", dataset.val),
            ("# test", dataset.test),
        ]:
            if items:
                rows.append([title, f"{len(items):,}"])
        print(tabulate(rows))
        print("".join(f"{line}\n" for line in self._left_out()), end="")

    def _left_out(self) -> Iterator[str]:
        """What a training epoch leaves out because it does not fill a batch, in a sentence."""
        for loader, key in ((self.train_loader_x, "TRAIN_X"), (self.train_loader_u, "TRAIN_U")):
            if loader is None or not loader.drop_last:
                continue
            order, batch = loader.order(), loader.batch_size or 1
            images, rest = len(order), len(order) % batch
            if not rest:
                continue
            items: Sequence[Datum] = getattr(loader.dataset, "data_source", ())
            if not items:  # a wrapper of the host's own
                continue
            first = Counter(items[i].classname for i in order[len(order) - rest :])
            drawn = Counter(items[i].classname for i in order)
            yield (
                f"Each epoch leaves out {rest} of {images} images that do not fill a batch of "
                f"{batch}, in the first epoch of {_shortened(first)} (DATALOADER.{key}.DROP_LAST "
                "False keeps them)"
            )
            names = dict.fromkeys(item.classname for item in items)
            rare = [name for name in names if drawn[name] <= rest]
            if rare:
                yield (
                    f"Classes with so few images in an epoch that it can be without them: "
                    f"{_shortened(rare)}"
                )
