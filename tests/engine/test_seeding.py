"""Order and augmentation follow from seed, epoch and image, with any number of workers."""

import random

import numpy as np
import pytest
import torch

from dassl.data import DataManager
from dassl.data.seeding import current_seed, mixed, seeded


def loader(host, root, *pairs):
    host.set_random_seed(0)
    return DataManager(host.config(root, "unused", *pairs)).train_loader_x


def batches(loader, epoch, first_batch=0):
    loader.start_epoch(epoch, first_batch)
    return [(batch["index"].tolist(), batch["img"]) for batch in loader]


def same(a, b) -> bool:
    return [i for i, _ in a] == [i for i, _ in b] and all(
        torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
    )


SAMPLERS = ["RandomSampler", "RandomClassSampler", "RandomDomainSampler"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_workers_gives_the_same_batches(host, root, sampler):
    pairs = ("DATALOADER.TRAIN_X.SAMPLER", sampler, "DATALOADER.TRAIN_X.N_INS", 5)
    pairs += ("INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "colorjitter"])
    first, *others = [
        [batches(x, epoch) for epoch in (0, 1)]
        for x in (loader(host, root, *pairs, "DATALOADER.NUM_WORKERS", n) for n in (0, 1, 3))
    ]
    for other in others:
        assert all(map(same, first, other))
    assert not same(first[0], first[1])  # epochs differ


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_epoch_can_begin_at_any_batch(host, root, sampler):
    made = loader(host, root, "DATALOADER.TRAIN_X.SAMPLER", sampler, "DATALOADER.TRAIN_X.N_INS", 5)
    whole = batches(made, 1)
    for first in range(len(whole)):
        assert same(batches(made, 1, first), whole[first:])
    again = [(b["index"].tolist(), b["img"]) for b in made]  # a second pass of the same epoch
    assert not same(again, whole)
    assert same(batches(made, 1, len(whole)), again)


def test_the_global_generators_are_not_used(host, root):
    made = loader(host, root)
    draws = []
    for use in (False, True):
        host.set_random_seed(3)
        if use:
            batches(made, 0)
            batches(made, 5, 2)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_the_crops_of_an_image_do_not_depend_on_the_other_images(host, root):
    made = loader(host, root)
    made.start_epoch(0)
    whole = {
        int(i): image
        for batch in made
        for i, image in zip(batch["index"], batch["img"], strict=True)
    }
    assert all(torch.equal(made.dataset[i]["img"], image) for i, image in whole.items())


def test_seeds(host):
    assert len({mixed(a, b) for a in range(20) for b in range(20)}) == 400
    host.set_random_seed(0)
    zero = current_seed()
    assert zero == current_seed()
    torch.rand(())
    assert zero != current_seed()
    with seeded(7):
        inside = random.random(), np.random.rand(), torch.rand(()).item()
    with seeded(7):
        assert inside == (random.random(), np.random.rand(), torch.rand(()).item())


# ---------------------------------------------------------------------------- what is left out


@pytest.mark.parametrize("size, rest", [(5, 4), (7, 3), (8, 0), (30, 0)])
def test_what_an_epoch_leaves_out_is_said(host, root, capsys, size, rest):
    made = loader(host, root, "DATALOADER.TRAIN_X.BATCH_SIZE", size)
    out = capsys.readouterr().out
    assert ("Each epoch leaves out" in out) == bool(rest)
    seen = [i for indices, _ in batches(made, 0) for i in indices]
    left = [made.dataset.data_source[i].classname for i in range(24) if i not in seen]
    assert len(left) == rest
    if rest:
        line = next(line for line in out.splitlines() if "Each epoch" in line)
        assert f"leaves out {rest} of 24 images" in line and "DROP_LAST" in line
        named = line.partition("in the first epoch of ")[2].partition(" (")[0].split(", ")
        assert sorted(named) == sorted(set(left))
        assert "can be without them" not in out  # every class has 8


def test_classes_that_an_epoch_can_be_without_are_said(host, root, capsys):
    loader(host, root, "DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
    assert "can be without them: blue, green, red" in capsys.readouterr().out.replace(
        "red, green, blue", "blue, green, red"
    )


def test_the_last_batch_can_be_kept(host, root, capsys):
    made = loader(host, root, "DATALOADER.TRAIN_X.DROP_LAST", False)
    assert [len(indices) for indices, _ in batches(made, 0)] == [5, 5, 5, 5, 4]
    assert "leaves out" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------- workers


def test_the_workers_of_a_training_serve_all_epochs(host, root):
    made = loader(host, root, "DATALOADER.NUM_WORKERS", 2)
    alone = loader(host, root, "DATALOADER.NUM_WORKERS", 0)
    processes = []
    for epoch, first in ((0, 0), (1, 0), (1, 2), (7, 0)):
        assert same(batches(made, epoch, first), batches(alone, epoch, first))
        processes.append({worker.pid for worker in made._iterator._workers})
    assert processes == [processes[0]] * 4 and len(processes[0]) == 2


def test_passes_beside_each_other_and_a_pass_that_was_left(host, root):
    """Some code takes an example by next(iter(loader)) inside an epoch."""
    seen = []
    for workers in (0, 2):
        made = loader(host, root, "DATALOADER.NUM_WORKERS", workers)
        made.start_epoch(0)
        outer = iter(made)
        found = [next(outer), next(iter(made)), *outer]
        found += [next(iter(made)), *made]
        seen.append([(batch["index"].tolist(), batch["img"]) for batch in found])
    assert same(*seen) and len(seen[0]) == 10


def test_a_few_images_need_no_workers(host, root):
    pairs = ("DATALOADER.NUM_WORKERS", 8, "DATALOADER.TEST.BATCH_SIZE")
    host.set_random_seed(0)
    manager = DataManager(host.config(root, "unused", *pairs, 100))  # 18 images, one batch
    assert (manager.train_loader_x.num_workers, manager.test_loader.num_workers) == (2, 0)
    assert manager.train_loader_x.persistent_workers
    manager = DataManager(host.config(root, "unused", *pairs, 2))
    assert manager.test_loader.num_workers == 4 and not manager.test_loader.persistent_workers
