"""A CLIP that is loaded once by a process which executes many runs."""

import os
import shutil

import pytest
import torch

from npt.backbones import kept, loading
from npt.backbones.kept import clip_kept
from npt.backbones.loading import load_clip
from npt.errors import NPTError
from npt.trainers.prompts import Classes
from npt.trainers.zsclip import frozen_text_features


@pytest.fixture
def loads(monkeypatch):
    """The sources of the CLIPs that were really constructed."""
    found, build = [], loading.build

    def counted(state, source, form):
        found.append(source)
        return build(state, source, form)

    monkeypatch.setattr(loading, "build", counted)
    monkeypatch.setattr(kept, "_kept", None)
    return found


def loaded(seed, name):
    """A CLIP that is loaded in the random state of a seed, and the next random numbers."""
    torch.manual_seed(seed)
    return load_clip(name), torch.rand(4)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(
        x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y)
        for x, y in zip(one.values(), other.values(), strict=True)
    )


def test_a_copy_is_what_a_load_gives(loads, reference_file):
    expected = [loaded(seed, reference_file) for seed in (1, 1, 2)]
    assert len(loads) == 3
    with clip_kept():
        found = [loaded(seed, reference_file) for seed in (1, 1, 2, 2, 1)]
    assert len(loads) == 5  # each random state is new once
    for (model, numbers), seed in zip(found, (1, 1, 2, 2, 1), strict=True):
        right, right_numbers = expected[seed]
        assert torch.equal(numbers, right_numbers)
        assert_same(model.state_dict(), right.state_dict())
        assert model.visual.input_resolution == right.visual.input_resolution
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_run_does_not_change_the_next_one(loads, reference_file):
    with clip_kept():
        right = loaded(1, reference_file)[0].state_dict()
        right = {name: x.clone() for name, x in right.items()}
        model, _ = loaded(1, reference_file)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.half()
        del model.visual
    with clip_kept():
        assert_same(loaded(1, reference_file)[0].state_dict(), right)
    assert len(loads) == 1


def test_a_replaced_file_is_loaded_again(loads, reference_file, tmp_path):
    file = tmp_path / "clip.pt"
    shutil.copy(reference_file, file)
    with clip_kept():
        first, _ = loaded(1, str(file))
        state = {name: x + 1 for name, x in first.state_dict().items()}
        torch.save(state, tmp_path / "other.pt")
        os.replace(tmp_path / "other.pt", file)
        second, _ = loaded(1, str(file))
        assert torch.equal(second.text_projection, first.text_projection + 1)
        file.write_bytes(b"nothing")
        with pytest.raises(NPTError, match="cannot read"):
            loaded(1, str(file))
        file.unlink()
        with pytest.raises(NPTError, match="unknown CLIP"):
            loaded(1, str(file))


def test_nothing_is_kept_elsewhere(loads, reference_file):
    for _ in range(2):
        loaded(1, reference_file)
    assert len(loads) == 2 and kept._kept is None


def test_frozen_texts_are_those_of_one_load(loads, reference_file):
    """They are asked for in the middle of a training, in any random state."""
    data, cpu = Classes(["cat", "dog"]), torch.device("cpu")
    right = frozen_text_features(reference_file, data, cpu)
    with clip_kept():
        for seed in (1, 2, 3):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            assert torch.equal(frozen_text_features(reference_file, data, cpu), right)
            assert torch.equal(torch.get_rng_state(), before)
    assert len(loads) == 2
