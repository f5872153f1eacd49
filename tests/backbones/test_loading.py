"""Loading a CLIP: OpenAI's file formats, the small CLIP, and errors."""

import numpy as np
import pytest
import torch
from clip_recipe import random_clip

from npt.backbones import catalog, sources, tiny
from npt.backbones.loading import load_clip
from npt.errors import NPTError


def check_same(model, state):
    """The model is frozen, in eval mode, and has exactly these values in float32."""
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert loaded[key].dtype == torch.float32
        assert torch.equal(loaded[key], value.float()), key


def test_state_dict_keeps_float32_exactly(tmp_path):
    state = random_clip(0).state_dict()
    path = tmp_path / "clip.pt"
    torch.save({**state, "input_resolution": torch.tensor(16)}, path)
    check_same(load_clip(str(path)), state)


def test_jit_archive(tmp_path):
    state = random_clip(0).half().state_dict()

    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    holder = Holder()
    for key, value in state.items():
        owner = holder
        *parents, leaf = key.split(".")
        for name in parents:
            if name not in dict(owner.named_children()):
                owner.add_module(name, Holder())
            owner = getattr(owner, name)
        owner.register_buffer(leaf, value)
    path = tmp_path / "clip.jit.pt"
    torch.jit.trace(holder, torch.zeros(1), check_trace=False).save(str(path))
    check_same(load_clip(str(path)), state)


def test_tiny_round_trip(tmp_path, monkeypatch):
    state = random_clip(0, vocabulary=catalog.VOCABULARY).half().float().state_dict()
    ids = np.array([49406, 5, 320, 49407])
    path = tmp_path / "tiny.npz"
    tiny.pack_tiny(state, ids, path)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.npz"]
    assert path.stat().st_size < 2_000_000
    monkeypatch.setattr(sources, "TINY_FILE", path)
    model = load_clip("tiny")
    embedding = torch.from_numpy(tiny.base_embedding(64))
    embedding[ids] = state["token_embedding.weight"][ids]
    check_same(model, {**state, "token_embedding.weight": embedding})


def test_base_embedding():
    rows = tiny.base_embedding(8)
    normal = np.random.default_rng(0).standard_normal((49408, 8))
    assert rows.dtype == np.float32
    assert np.array_equal(rows, (0.02 * normal).astype(np.float16).astype(np.float32))


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tiny.np, "savez_compressed", fail)
    with pytest.raises(OSError):
        tiny.pack_tiny(
            random_clip(0, vocabulary=catalog.VOCABULARY).state_dict(), [1], tmp_path / "t.npz"
        )
    assert not list(tmp_path.iterdir())


def test_the_error_without_network_names_the_model(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise NPTError("the host cannot be reached.")

    monkeypatch.setattr(sources, "fetch", offline)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NPTError, match=r"ViT-B/16 .*MODEL.BACKBONE.NAME"):
        load_clip("ViT-B/16")


def test_errors_name_the_problem(tmp_path, monkeypatch):
    with pytest.raises(NPTError, match=r"ViT-B/17.*tiny.*RN50"):
        load_clip("ViT-B/17")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no archive")
    with pytest.raises(NPTError, match=r"broken\.pt"):
        load_clip(str(broken))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(NPTError, match="Tensor"):
        load_clip(str(tmp_path / "tensor.pt"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(NPTError, match=r"visual\.conv1\.weight"):
        load_clip(str(tmp_path / "other.pt"))
    state = random_clip(0).state_dict()
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(NPTError, match=r"ln_final\.bias"):
        load_clip(str(tmp_path / "part.pt"))
    monkeypatch.setattr(sources, "TINY_FILE", tmp_path / "none.npz")
    with pytest.raises(NPTError, match=r"none\.npz"):
        load_clip("tiny")
