"""What each epoch of a training showed, against the plain computation on all its features."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.course import Course
from npt.geometry import neural_collapse_metrics
from npt.losses import unit_rows
from npt.terms import Batch, Run

K, D, B = 3, 6, 4


def step(seed: int, per_image: bool) -> Batch:
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(*((B, K, D) if per_image else (K, D)), generator=g)
    labels = torch.tensor([0, 1, 2, seed % K])
    return Batch(torch.randn(B, D, generator=g), text, labels, Run(None))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.integers(0, 20))
def test_an_entry_is_of_the_features_of_its_epoch(epochs, per_image, stopped_at):
    course, number, expected = Course(), 0, []
    for epoch, steps in enumerate(epochs):
        batches = [step(number + i, per_image) for i in range(steps)]
        for i, batch in enumerate(batches):
            if number + i == stopped_at:  # the process ends, and another one goes on
                file = io.BytesIO()
                torch.save(course.state(), file)
                file.seek(0)
                course = Course()
                course.load_state(torch.load(file, weights_only=True))
            course.add(epoch, {"loss": float(i), "lcd": torch.tensor(2.0 * i)}, batch)
        number += steps
        texts = [unit_rows(x.text if per_image else x.text.expand(B, K, D)) for x in batches]
        images = unit_rows(torch.cat([x.image for x in batches]))
        labels = torch.cat([x.labels for x in batches])
        nc = neural_collapse_metrics(images, labels, torch.cat(texts).mean(0))
        loss = sum(range(steps)) / steps
        figures = {"loss": loss, "lcd": 2 * loss, **{k: float(x) for k, x in nc._asdict().items()}}
        expected.append({"epoch": epoch + 1, **figures})
    found = course.entries()
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    for entry, wanted in zip(found, expected, strict=True):
        assert entry == pytest.approx(wanted, rel=1e-4)
    assert course.means() == {k: found[-1][k] for k in ("loss", "lcd")}


def test_what_cannot_be_computed_is_none():
    course = Course()
    one = torch.ones(1, D), torch.tensor([1])
    course.add(0, {"loss": math.inf}, Batch(one[0], torch.eye(K, D), one[1], Run(None)))
    assert course.entries() == [{"epoch": 1, "loss": None, "nc1": None, "nc2": None, "nc3": None}]
    course.add(1, {"loss": 1.0}, step(0, False))
    course.add(1, {"loss": 1.0}, None)  # a step without features
    assert course.entries()[1] == {"epoch": 2, "loss": 1.0}
    course.add(2, {}, step(0, False))
    course.add(2, {}, Batch(one[0], torch.eye(K + 1, D), one[1], Run(None)))
    assert course.entries()[2] == {"epoch": 3}


def test_infinite_features_end_no_training():
    course, batch = Course(), step(0, False)
    course.add(0, {}, Batch(batch.image / 0, batch.text, batch.labels, Run(None)))
    assert course.entries()[0]["nc1"] is None


def test_an_epoch_that_is_trained_again_replaces_those_after_it():
    course = Course()
    for epoch in (0, 1, 2, 1):
        course.add(epoch, {"loss": float(epoch)}, None)
        course.close()
    assert [(x["epoch"], x["loss"]) for x in course.entries()] == [(1, 0.0), (2, 1.0)]


def test_nothing_was_trained():
    assert Course().entries() == [] and Course().means() == {}
