"""CLIPs of open_clip and of Hugging Face: the values of those libraries, and what is refused."""

from __future__ import annotations

import json
import shutil

import clip
import pytest
import torch
from foreign_clips import (
    Foreign,
    of_open_clip,
    of_transformers,
    open_clip_config,
    prompted,
)

from npt.backbones import sources
from npt.backbones.loading import load_clip
from npt.encoders import build_encoders
from npt.encoders.packing import ClassPrompts, place_context
from npt.errors import NPTError

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
LARGE = [
    pytest.param(name, marks=pytest.mark.long)
    for name in ("ViT-L-14", "ViT-L-14-336-quickgelu", "ViT-H-14")
]
SHAPES = ("ViT-B-32", "ViT-B-16-quickgelu", "RN50", *LARGE)
HUGGING_FACE = {
    "ViT-B/32": ({}, {"patch_size": 32}),
    "ViT-B/16, GELU": ({"hidden_act": "gelu"}, {"patch_size": 16, "hidden_act": "gelu"}),
    "ViT-L/14@336px": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 336,
        },
    ),
}
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
SMALL_VISION = {**SMALL_TEXT, "patch_size": 8, "image_size": 32}
TEXTS = ["X X a photo of a cat.", "X X small striped dogs in the garden.", "X X owl."]
N = 2  # prompts


def assert_same(name: str, theirs: Foreign) -> None:
    """Both encoders, plain and fast, give the features of the other library's own model."""
    ours = load_clip(name)
    size, width = ours.visual.input_resolution, len(ours.ln_final.weight)
    generator = torch.Generator().manual_seed(1)

    def prompts(width: int) -> list[torch.Tensor]:
        return [torch.randn(N, width, generator=generator) for _ in range(2)]

    images = torch.randn(2, 3, size, size, generator=generator)
    tokens = clip.tokenize(TEXTS)[:, : len(ours.positional_embedding)]
    placed = place_context(clip.tokenize(TEXTS), N)
    vit = hasattr(ours.visual, "proj")
    text = prompts(width)
    visual = prompts(len(ours.visual.ln_post.weight)) if vit else []
    with torch.no_grad():
        for plain in (True, False):
            encode_text, encode_image = build_encoders(
                ours, ClassPrompts(clip.tokenize(TEXTS)), plain=plain
            )
            close(encode_text(), theirs.encode_text(tokens))
            close(encode_image(images), theirs.encode_image(images))
            encode_text, encode_image = build_encoders(ours, placed, plain=plain)
            with prompted(theirs, placed.slots, text, visual):
                close(encode_text(text[0], text[1:]), theirs.encode_text(tokens))
                if vit:
                    found = encode_image(images, visual[0], visual[1:])
                    close(found, theirs.encode_image(images))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_features_of_open_clip_s_own_model(name, tmp_path, monkeypatch):
    config = open_clip_config(name)
    theirs = of_open_clip(config)
    torch.save(theirs.model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Shallow", config)
    assert_same(f"open_clip:Shallow/{tmp_path}/weights.pt", theirs)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_features_of_transformers_own_model(name, tmp_path):
    theirs = of_transformers(*HUGGING_FACE[name])
    theirs.model.save_pretrained(tmp_path)
    assert_same(str(tmp_path), theirs)


# ---- small ones, in every form in which people have them


@pytest.fixture(scope="module")
def small():
    return of_transformers(SMALL_TEXT, SMALL_VISION, projection_dim=32)


@pytest.fixture
def folder(small, tmp_path):
    small.model.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def edit(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def small_open_clip(**options):
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"width": 64, "heads": 4, "layers": 2},
    }
    for name, value in options.items():
        if isinstance(value, dict):
            config[name] |= value
        else:
            config[name] = value
    return config


FORMS = {
    "heads": {"vision_cfg": {"head_width": 16}},
    "ResNet": {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32}},
    "wide MLPs": {"vision_cfg": {"mlp_ratio": 4.9231}, "text_cfg": {"mlp_ratio": 2.0}},
    "GELU by tanh": {
        "vision_cfg": {"act_kwargs": {"approximate": "tanh"}},
        "text_cfg": {"act_kwargs": {"approximate": "tanh"}},
    },
    "epsilon": {"vision_cfg": {"norm_kwargs": {"eps": 1e-3}}},
    "text in a module": {"custom_text": True},
    "QuickGELU": {"quick_gelu": True},
    "shorter texts": {"text_cfg": {"context_length": 40}},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_of_open_clip(name, tmp_path):
    config = small_open_clip(**FORMS[name])
    theirs = of_open_clip(config)
    from safetensors.torch import save_file

    save_file(theirs.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    assert_same(str(tmp_path), theirs)
    assert_same(str(tmp_path / "open_clip_model.safetensors"), theirs)  # the config is beside it
    assert sources.preprocessing_of(str(tmp_path)).mean == (0.5, 0.5, 0.5)


def test_texts_that_are_longer_than_a_model_takes(tmp_path):
    theirs = of_open_clip(small_open_clip(text_cfg={"context_length": 6}))
    torch.save(theirs.model.state_dict(), tmp_path / "short.pt")
    with pytest.warns(UserWarning, match="GELU"):
        model = load_clip(str(tmp_path / "short.pt"))
    for plain in (True, False):
        with pytest.raises(NPTError, match=r"has 10 tokens.*takes 6.*N_CTX"):
            build_encoders(model, ClassPrompts(clip.tokenize(TEXTS[:1])), plain=plain)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_of_open_clip_alone_has_gelu_and_says_so(wrapped, tmp_path):
    theirs = of_open_clip(small_open_clip(text_cfg={"heads": 1}))
    state = theirs.model.state_dict()
    if wrapped:  # as open_clip's training on several GPUs saves it
        state = {f"module.{key}": value for key, value in state.items()}
        state = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}
    file = tmp_path / "epoch_3.pt"
    torch.save(state, file)
    with pytest.warns(UserWarning, match=r"GELU and 1 attention.*open_clip:ViT-B-16-quickgelu/"):
        assert_same(str(file), theirs)
    assert sources.preprocessing_of(str(file)).size == 32


@pytest.mark.parametrize("wrapper", ["model", "model_state_dict", "ema", ""])
@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "clip.", ""])
def test_checkpoints_of_any_training(wrapper, prefix, tmp_path):
    theirs = of_open_clip(small_open_clip(text_cfg={"heads": 1}, custom_text=True))
    state = {f"{prefix}{key}": x.half() for key, x in theirs.model.state_dict().items()}
    state |= {"loss.weight": torch.ones(3)} if prefix else {}
    state = {wrapper: state, None: 1, "epoch": 2, ("a", 1): "b"} if wrapper else state
    theirs.model.half().float()
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="GELU and 1 attention heads for images"):
        assert_same(str(tmp_path / "last.ckpt"), theirs)
    with pytest.warns(UserWarning, match="GELU"):
        assert sources.preprocessing_of(str(tmp_path / "last.ckpt")).size == 32
        load_clip(str(tmp_path / "last.ckpt"))


def test_weights_in_no_one_s_order_have_quickgelu_and_say_so(tmp_path):
    theirs = of_open_clip(small_open_clip(quick_gelu=True, text_cfg={"heads": 1}))
    state = theirs.model.state_dict()
    torch.save({key: state[key] for key in sorted(state)}, tmp_path / "clip.pt")
    with pytest.warns(UserWarning, match=r"QuickGELU are taken.*open_clip:ViT-B-16/"):
        assert_same(str(tmp_path / "clip.pt"), theirs)


def test_a_kept_clip_is_another_with_another_form(folder, tmp_path):
    from npt.backbones.kept import clip_kept

    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "model.safetensors").symlink_to(folder / "model.safetensors")
    shutil.copy(folder / "config.json", twin)
    edit(twin / "config.json", text_config={**SMALL_TEXT, "num_hidden_layers": 2})
    edit(folder / "config.json", text_config={**SMALL_TEXT, "hidden_act": "gelu"})
    tokens = clip.tokenize(TEXTS)
    with clip_kept(), torch.no_grad():
        kept = [load_clip(str(place)).encode_text(tokens) for place in (folder, twin)]
    with torch.no_grad():
        assert torch.equal(kept[1], load_clip(str(twin)).encode_text(tokens))
    assert not torch.equal(*kept)


def test_the_checksum_of_a_file_with_the_name_of_its_model(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"token_embedding.weight": torch.zeros(2)}, file)
    names = [str(file), f"open_clip:ViT-B-32/{file}", f"open_clip:ViT-B-32-quickgelu/{file}"]
    assert len({sources.digest_of(name) for name in names}) == 3


def test_a_tag_of_open_clip(tmp_path, monkeypatch):
    config = small_open_clip()
    theirs = of_open_clip({**config, "quick_gelu": True})
    torch.save(theirs.model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small-8", config)
    tag = {"file": str(tmp_path / "weights.pt"), "quick_gelu": True, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Small-8", {"mine": tag})
    for name in ("open_clip:Small-8/mine", "open_clip:Small/8/mine"):
        with pytest.warns(UserWarning, match="QuickGELU, which is taken"):
            assert_same(name, theirs)
    assert sources.preprocessing_of("open_clip:Small-8/mine").mean == (0.5, 0.5, 0.5)
    for name, reason in {
        "open_clip:Small-8": "names no weights.*mine",
        "open_clip:Small-8/yours": "'yours' is no file and no tag of Small-8.*mine",
        "open_clip:Larger/mine": "no model that open_clip has",
    }.items():
        with pytest.raises(NPTError, match=reason):
            load_clip(name)


def test_files_in_parts_and_files_of_torch(small, folder, tmp_path):
    assert_same(str(folder), small)
    shards = tmp_path / "shards"
    small.model.save_pretrained(shards, max_shard_size="1MB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    assert_same(str(shards), small)
    min(shards.glob("model-*.safetensors")).unlink()
    with pytest.raises(NPTError, match=r"lacks model-00001-of-.*get the file again"):
        load_clip(str(shards))
    index = shards / "model.safetensors.index.json"
    for part in ("../small/model.safetensors", "/etc/passwd", 3, None):
        index.write_text(json.dumps({"weight_map": {"logit_scale": part}}))
        with pytest.raises(NPTError, match="is no index of weights"):
            load_clip(str(shards))
    (folder / "model.safetensors").unlink()
    torch.save(small.model.state_dict(), folder / "pytorch_model.bin")
    assert_same(str(folder), small)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(NPTError, match="has no weights"):
        load_clip(str(folder))


def test_half_precision_is_read_as_written(small, folder):
    half = {
        key: x.half() if x.is_floating_point() else x for key, x in small.model.state_dict().items()
    }
    (folder / "model.safetensors").unlink()
    torch.save(half, folder / "pytorch_model.bin")
    found = load_clip(str(folder)).state_dict()
    assert all(x.dtype == torch.float32 for x in found.values())
    assert torch.equal(
        found["token_embedding.weight"],
        half["text_model.embeddings.token_embedding.weight"].float(),
    )


def test_a_repository_of_the_hub(folder, monkeypatch, small):
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(repository, file):
        if repository != "people/small":
            raise LocalEntryNotFoundError("no network")
        if not (folder / file).is_file():
            raise EntryNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert_same("hf:people/small", small)
    assert_same("open_clip:hf-hub:people/small", small)
    assert sources.digest_of("hf:people/small") == sources.digest_of(str(folder))
    with pytest.raises(NPTError, match=r"hf:people/other.*no network.*name its folder"):
        load_clip("hf:people/other")


def test_the_checksum_covers_what_the_weights_do_not_show(folder):
    before = sources.digest_of(str(folder))
    shutil.copytree(folder, folder.with_name("copy"))
    assert sources.digest_of(str(folder.with_name("copy"))) == before
    edit(folder / "config.json", text_config={**SMALL_TEXT, "hidden_act": "gelu"})
    assert sources.digest_of(str(folder)) != before


def test_the_preprocessing_of_a_folder(folder):
    assert sources.preprocessing_of(str(folder)).keys() == {
        "SIZE": (32, 32),
        "PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
        "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
        "INTERPOLATION": "bicubic",
    }
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 2}
    nested = {"image_processor": {**processor, "size": {"height": 32, "width": 32}}}
    nested["image_processor"]["do_center_crop"] = False
    (folder / "processor_config.json").write_text(json.dumps(nested))
    found = sources.preprocessing_of(str(folder))
    assert (found.mean, found.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    assert found.unlike == "resized to squares as a whole"
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert sources.preprocessing_of(str(folder)).std == (1, 1, 1)
    for entries, unlike in (
        ({"size": {"shortest_edge": 36}}, "resized to 36 pixels before they were cropped to 32"),
        ({"size": 32, "crop_size": 32, "resample": None}, ""),
        ({"do_resize": False}, "not resized"),
        ({"do_rescale": False}, r"not scaled to [0, 1]"),
        ({"rescale_factor": 1 / 127.5}, "not scaled to [0, 1]"),
        ({"rescale_factor": 0.00392156862745098}, ""),
        ({"resample": 1}, "resized with Pillow's filter 1"),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(entries))
        assert sources.preprocessing_of(str(folder)).unlike == unlike
    for entries in ({"image_mean": [0.5]}, {"image_std": [1, 0, 1]}, {"image_mean": 0.5}):
        (folder / "preprocessor_config.json").write_text(json.dumps(entries))
        with pytest.raises(NPTError):
            sources.preprocessing_of(str(folder))


# ---- what is no such CLIP


def open_clip_names():
    """Models of open_clip with other encoders, texts or trainings than CLIP's."""
    parts = ("SigLIP", "EVA", "coca", "convnext", "MobileCLIP", "ViTamin", "roberta", "nllb", "mt5")
    parts += ("CLIPA", "worldwide", "PE-")
    names = [n for n in open_clip.list_models() if any(part in n for part in parts)]
    assert len(names) > 60
    return names


def test_models_of_open_clip_that_are_no_such_clip_are_refused():
    for name in open_clip_names():
        with pytest.raises(NPTError, match=r"cannot be used: it.*; choose a CLIP") as caught:
            load_clip(f"open_clip:{name}/none")
        assert "\n" not in str(caught.value)


def test_models_of_open_clip_that_are_such_clips_are_not():
    names = {"ViT-B-32", "ViT-B-16-plus-240", "ViT-L-14-336", "ViT-g-14", "ViT-bigG-14", "RN50x64"}
    names |= {"ViT-H-14-378-quickgelu", "RN101-quickgelu", "ViT-S-16-alt", "ViT-B-32-256"}
    for name in names:
        with pytest.raises(NPTError, match="'none' is no file and no tag"):
            load_clip(f"open_clip:{name}/none")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("siglip", "SigLIP"),
        ("chinese_clip", "BERT"),
        ("clip_vision_model", "the image encoder alone"),
        ("bert", "type bert"),
    ],
)
def test_models_of_hugging_face_that_are_no_clip_are_refused(folder, kind, reason):
    edit(folder / "config.json", model_type=kind)
    with pytest.raises(NPTError, match=f"cannot be used: it is .*{reason}"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("text_config", {"vocab_size": 1000}, "vocabulary has 1000 tokens"),
        ("text_config", {"hidden_act": "relu"}, "activation of its MLPs is relu"),
        ("text_config", {"eos_token_id": 7}, "end with the token 7"),
        ("text_config", {"num_attention_heads": 0}, "0 attention heads"),
        ("text_config", {"num_attention_heads": None}, r"config\.json does not describe a CLIP"),
        ("text_config", {"vocab_size": "many"}, r"config\.json does not describe a CLIP"),
        ("vision_config", {"num_attention_heads": 3}, "3 heads cannot share a width of 64"),
        ("vision_config", {"num_channels": 4}, "4 channels"),
        ("vision_config", {"image_size": [32, 64]}, "32 x 64 pixels"),
    ],
)
def test_clips_of_hugging_face_with_other_parts_are_refused(folder, part, values, reason):
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **{part: {**config[part], **values}})
    with pytest.raises(NPTError, match=reason):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("logit_bias", "SigLIP"),
        ("text_decoder.ln.weight", "CoCa"),
        ("visual.rope.freqs_cos", "rotary"),
        ("positional_embedding_res", "LongCLIP"),
        ("visual.blocks.0.attn.qkv.weight", "EVA"),
        ("visual.trunk.stem.weight", "timm"),
        ("text.transformer.embeddings.weight", "Hugging Face"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path, key, reason):
    torch.save({key: torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(NPTError, match=rf"other\.pt.*cannot be used.*{reason}"):
        load_clip(str(tmp_path / "other.pt"))


def test_bad_files_and_folders_are_one_sentence(folder, tmp_path):
    with pytest.raises(NPTError, match=r"without their config\.json"):
        shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
        load_clip(str(tmp_path / "alone.safetensors"))
    with pytest.raises(NPTError, match=r"has no config\.json or open_clip_config\.json"):
        load_clip(str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(NPTError, match="as safetensors"):
        load_clip(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(NPTError, match="is not JSON"):
        load_clip(str(folder))


def test_an_old_config_counts_before_a_new_one(folder):
    config = json.loads((folder / "config.json").read_text())
    theirs = of_transformers(
        {**SMALL_TEXT, "hidden_act": "quick_gelu"}, SMALL_VISION, projection_dim=32
    )
    old = {key: config["text_config"][key] for key in SMALL_TEXT}
    edit(
        folder / "config.json",
        text_config={**config["text_config"], "hidden_act": "gelu"},
        text_config_dict={**old, "num_hidden_layers": 2},
    )
    assert_same(str(folder), theirs)


def test_a_smaller_vocabulary(tmp_path):
    theirs = of_open_clip(small_open_clip(text_cfg={"vocab_size": 1000, "heads": 1}))
    torch.save(theirs.model.state_dict(), tmp_path / "few.pt")
    with pytest.warns(UserWarning, match="GELU"):
        model = load_clip(str(tmp_path / "few.pt"))
    with pytest.raises(NPTError, match="knows 1000 tokens"):
        build_encoders(model, ClassPrompts(clip.tokenize(TEXTS)))


def test_no_name_is_no_folder(monkeypatch, folder):
    monkeypatch.chdir(folder)
    with pytest.raises(NPTError, match="unknown CLIP ''"):
        load_clip("")
    assert sources.digest_of("") == "" != sources.digest_of(".")


def test_weights_that_do_not_fit_their_config(small, folder):
    state = small.model.state_dict()
    (folder / "model.safetensors").unlink()
    for part in ("text_model.encoder.layers.0.self_attn.k_proj.weight", "logit_scale"):
        torch.save({k: x for k, x in state.items() if k != part}, folder / "pytorch_model.bin")
        with pytest.raises(NPTError, match=part.replace(".", r"\.")):
            load_clip(str(folder))


def test_packages_that_are_not_installed_are_named(monkeypatch, folder):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NPTError, match=r'pip install "npt-clip\[open_clip\]"'):
        load_clip("open_clip:ViT-B-32/openai")
    with pytest.raises(NPTError, match=r'pip install "npt-clip\[hf\]"'):
        load_clip("hf:openai/clip-vit-base-patch32-of-nobody")
