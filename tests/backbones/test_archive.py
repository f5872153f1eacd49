"""Weights in archives: the values of torch's own readers, damage noticed, nothing executed."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from clip.model import CLIP, convert_weights
from clip_recipe import half_runs_on_cpu, random_clip

from npt.backbones import building, tiny
from npt.backbones.loading import load_clip
from npt.backbones.weights import read, shapes
from npt.errors import NPTError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def read_file(path):
    """The state dict in a file, whose shapes are also read without the numbers."""
    found = read([Path(path)])
    tensors = {key: tuple(x.shape) for key, x in found.items() if isinstance(x, torch.Tensor)}
    assert shapes([Path(path)]) == tensors
    return found


def official(resnet=False):
    """A small CLIP as OpenAI traced theirs: half weights, and three numbers as buffers."""
    tower = ((1, 1, 1, 1), 64, None) if resnet else (2, 64, 8)
    model = CLIP(64, 32, *tower, 8, 100, 64, 1, 2).eval()
    convert_weights(model)
    for name in building.SCALARS:
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(32 if name == "input_resolution" else 8))
    return model


def trace(model, path):
    image, text = torch.randn(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long)
    methods = {"forward": (image, text), "encode_image": (image,), "encode_text": (text,)}
    torch.jit.trace_module(model, methods, check_trace=False).save(str(path))
    return path


class Layer(torch.nn.Module):
    """Has a parameter, a buffer, None, a tensor of neither kind, and other attributes."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(size, 2).t())  # not contiguous
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.bfloat16))
        self.bias = None
        self.mask = torch.ones(3)
        self.sizes = [size, 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight * self.scale + self.sizes[0] + self.mask.sum()


def scripted(path):
    second = Layer(3)
    second.weight = torch.nn.Parameter(second.weight[:, 1:])  # a view of a larger storage
    torch.jit.save(torch.jit.script(torch.nn.Sequential(Layer(4), second, Layer(4))), str(path))
    return path


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        assert torch.equal(found[key], value), key


@pytest.mark.skipif(not half_runs_on_cpu(), reason="tracing needs float16 on the CPU")
@pytest.mark.parametrize("resnet", [False, True])
def test_archives_traced_as_openai_did(tmp_path, resnet):
    path = trace(official(resnet), tmp_path / "clip.pt")
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("clip/data.pkl")
    assert b"__torch__.clip.model" in pickled and b"___torch_mangle_" in pickled
    check_equal(read_file(str(path)), torch.jit.load(path).state_dict())
    assert load_clip(str(path)).visual.input_resolution == 32


def test_scripted_archives(tmp_path):
    path = scripted(tmp_path / "a.pt")
    check_equal(read_file(str(path)), torch.jit.load(path).state_dict())


def test_state_dicts(tmp_path):
    state = {
        **random_clip(0).state_dict(),
        "view": torch.arange(12).view(3, 4)[1:, ::2],
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2).double()),
        "nothing": torch.zeros(0, 3),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    }
    torch.save(state, tmp_path / "a.pt")
    check_equal(read_file(str(tmp_path / "a.pt")), torch.load(tmp_path / "a.pt"))
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"old\.pt has the format of torch before 1\.6"):
        check_equal(read_file(str(tmp_path / "old.pt")), state)


def test_the_other_byte_order(tmp_path):
    state = {"a": torch.randn(5), "b": torch.arange(3), "c": torch.randn(2).half()}
    torch.save(state, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w") as other,
    ):
        for name in archive.namelist():
            content = archive.read(name)
            if "/data/" in name:
                size = state["abc"[int(name[-1])]].element_size()
                content = np.frombuffer(content, f"i{size}").byteswap().tobytes()
            elif name.endswith("byteorder"):
                content = {b"little": b"big", b"big": b"little"}[content]
            other.writestr(name, content)
    check_equal(read_file(str(tmp_path / "b.pt")), state)


# --------------------------------------------------------------------------- damage
def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


@pytest.mark.parametrize("kind", ["state dict", "archive"])
def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path, kind):
    path = tmp_path / "a.pt"
    if kind == "archive":
        scripted(path)
    else:
        torch.save({"weight": torch.randn(4, 4), "bias": torch.randn(4).half()}, path)
    good, content = read_file(str(path)), path.read_bytes()
    noticed = 0
    for bit in range(0, 8 * len(content), 5 if kind == "state dict" else 37):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert same(read_file(str(path)), good), bit
        except NPTError as error:
            noticed += 1
            assert str(path) in str(error)
    assert noticed > 100


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_an_error(tmp_path, new):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.randn(20)}, path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(NPTError, match=r"cannot read .*a\.pt"):
            read_file(str(path))


def test_bytes_after_the_end_of_an_old_file_are_an_error(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.randn(20)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(NPTError, match=r"a\.pt.*continues after its end"):
        read_file(str(path))


def test_one_flipped_bit_of_the_small_clip_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "tiny.npz"
    tiny.pack_tiny({"token_embedding.weight": torch.randn(64, 4)}, [3, 7], path)
    good, content = tiny.read_tiny(path), path.read_bytes()
    for bit in range(0, 8 * len(content), 11):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert same(tiny.read_tiny(path), good), bit
        except NPTError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, number):
    state = random_clip(0).state_dict()
    state["ln_final.weight"][3] = number
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(NPTError, match=r"a\.pt.*NaN in ln_final\.weight"):
        load_clip(str(tmp_path / "a.pt"))


# --------------------------------------------------------------------------- hostile archives
def test_an_archive_that_acts_when_it_is_loaded_does_nothing(tmp_path):
    class Acting(torch.nn.Module):
        def __init__(self, path: str):
            super().__init__()
            self.path = path
            self.weight = torch.nn.Parameter(torch.ones(2))

        @torch.jit.export
        def __getstate__(self):
            return self.path, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path, self.training = state
            self.weight = torch.ones(2)
            torch.save(self.weight, self.path)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    target = tmp_path / "written"
    path = tmp_path / "evil.pt"
    torch.jit.save(torch.jit.script(Acting(str(target))), str(path))
    torch.jit.load(str(path))
    assert target.exists()  # the archive does act, if torch loads it
    target.unlink()
    with pytest.raises(NPTError, match=r"evil\.pt.* its own code, which is not executed"):
        load_clip(str(path))
    assert not target.exists()


def archive_of(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
        for name, content in members.items():
            archive.writestr(f"a/{name}", content)
    return str(path)


@pytest.mark.parametrize("jit", [False, True])
def test_a_pickle_that_names_functions_runs_none(tmp_path, jit, monkeypatch):
    called = []
    monkeypatch.setattr(os, "system", called.append)
    pickled = b"\x80\x02cos\nsystem\n(S'x'\ntR0}."
    assert pickle.loads(pickled) == {} and called == ["x"]
    called.clear()
    members = {"constants.pkl": b"\x80\x02)."} if jit else {}
    assert read_file(archive_of(tmp_path / "a.pt", pickled, **members)) == {}
    assert called == []


def nested(depth):
    """Modules, each twice in the one above it."""
    module = b"c__torch__.m\nM\n)\x81}(X\x01\x00\x00\x00aNub"
    for _ in range(depth):
        pair = b"(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u"
        module += b"q\x000c__torch__.m\nM\n)\x81}" + pair + b"b"
    return b"\x80\x02" + module + b"."


CODE = {"code/__torch__/m.py": "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n"}
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00%s%s\x89NtR"
)


def with_tensor(size, stride):
    return b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR % (size, stride) + b"s."


HOSTILE = {
    "cycle": b"\x80\x02c__torch__.m\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
    "doubled sixty times": nested(60),
    "deep": nested(3000),
    "memo missing": b"\x80\x02h\x07.",
    "long string": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "attributes of a class": b"\x80\x02c__torch__.m\nM\n}X\x01\x00\x00\x00aNsb.",
    "tensor of 10^12 numbers": with_tensor(
        b"J\x40\x42\x0f\x00J\x40\x42\x0f\x00\x86", b"K\x00K\x00\x86"
    ),
    "tensor beyond its storage": with_tensor(b"K\x09\x85", b"K\x01\x85"),
    "tensor of negative size": with_tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "a deep key of an old dictionary": b"\x80\x02()" + b"\x85" * 200_000 + b"K\x01d.",
    "a deep element of a set": b"\x80\x04()" + b"\x85" * 200_000 + b"\x91.",
    "a deep size": with_tensor(b")" + b"\x85" * 200_000, b"K\x01\x85"),
    "a deep key of a storage": with_tensor(b"K\x02\x85", b"K\x01\x85").replace(
        b"X\x01\x00\x00\x000", b")" + b"\x85" * 200_000
    ),
    "not a dictionary": b"\x80\x02K\x01.",
    "an object of a class": b"\x80\x02cclip.model\nCLIP\n)\x81.",
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_one_sentence(tmp_path, what):
    numbers = {"data/0": bytes(16)}
    path = archive_of(tmp_path / "a.pt", HOSTILE[what], **CODE, **numbers)
    with pytest.raises(NPTError, match=r"cannot read .*a\.pt"):
        read_file(path)


def test_an_entry_whose_key_is_no_name_is_left_out(tmp_path):
    """Also a key that is a tuple in a tuple, 200,000 deep, which Python could not hash."""
    pickled = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
    assert read_file(archive_of(tmp_path / "a.pt", pickled)) == {}
    torch.save({None: 1, 2.5: 3, ("a",): 4, "weight": torch.ones(2)}, tmp_path / "b.pt")
    check_equal(read_file(tmp_path / "b.pt"), {"weight": torch.ones(2)})


def test_a_pickle_that_remembers_an_object_as_number_two_billion(tmp_path):
    """pickle's own unpickler makes a table of that length, of 32 GB."""
    assert read_file(archive_of(tmp_path / "a.pt", b"\x80\x02}r\xff\xff\xff\x7f.")) == {}


def test_the_tensor_of_these_archives_can_be_read(tmp_path):
    pickled = with_tensor(b"K\x02K\x02\x86", b"K\x02K\x01\x86")
    path = archive_of(tmp_path / "a.pt", pickled, **{"data/0": bytes(16)})
    check_equal(read_file(path), {"a": torch.zeros(2, 2)})
    with pytest.raises(NPTError, match=r"data/0 has another length"):
        read_file(archive_of(tmp_path / "b.pt", pickled, **{"data/0": bytes(20)}))


def test_a_compressed_archive_is_bounded_by_its_size(tmp_path):
    pickled = with_tensor(b"K\x02K\x02\x86", b"K\x02K\x01\x86")
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(10**8))
    with pytest.raises(NPTError, match="members are too large for this file"):
        read_file(str(tmp_path / "a.pt"))


def test_a_pickled_model_is_not_a_state_dict(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(NPTError, match="not a file of torch"):
        read_file(str(tmp_path / "a.pt"))
    torch.save(random_clip(0), tmp_path / "b.pt")
    with pytest.raises(NPTError, match=r"b\.pt.*contains a clip\.model\.CLIP, not a state dict"):
        load_clip(str(tmp_path / "b.pt"))


@pytest.mark.skipif(not half_runs_on_cpu(), reason="tracing needs float16 on the CPU")
def test_openais_files_are_read_from_clips_cache(tmp_path, monkeypatch):
    from npt.backbones.catalog import MODELS, OpenAI
    from npt.download import digest

    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    path = trace(official(), cache / "Small.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(MODELS, "Small", OpenAI(digest(path), "Small.pt"))
    expected = {
        key: value.float()
        for key, value in torch.jit.load(path).state_dict().items()
        if key not in building.SCALARS
    }
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("executed"))
    check_equal(load_clip("Small").state_dict(), expected)
