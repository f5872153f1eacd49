"""The trainers, on the small reference CLIP and data in memory."""

import math
import subprocess
import sys
from pathlib import Path

import clip
import pytest
import torch
from clip_recipe import half_runs_on_cpu
from torch import nn
from trainer_kit import NODES, TRAINERS, build, config, random_batches

import npt.trainers
from npt.backbones.loading import load_clip
from npt.datasets.catalog import CATALOG
from npt.errors import NPTError
from npt.losses import unit_rows
from npt.trainers.prompts import Classes, class_prompts, template_of
from npt.trainers.zsclip import frozen_text_features

NAMES = ["red_circle", "blue square", "sea or lake", "2012 Tesla Model S", "cat"]
METHODS = sorted(NODES)
PHOTO = "a photo of a"


def trained(cfg, names=NAMES, batches=None):
    trainer = build(cfg, names, batches)
    trainer.train()
    return trainer


def logits_of(trainer):
    trainer.set_model_mode("eval")
    images = trainer.test_loader.images[0]
    with torch.no_grad():
        return trainer.model(images)


def clip_logits(backbone, images, texts):
    with torch.no_grad():
        return load_clip(backbone)(images, clip.tokenize(texts))[0]


# ---- what is computed


def test_one_class_trains_without_a_measure_of_its_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trained(config("CoOp", "tiny", "OPTIM.MAX_EPOCH", 1), names=["cat"])
    (entry,) = trainer._measure_course.entries()
    assert entry["loss"] == pytest.approx(0, abs=1e-6) and entry["nc1"] is None


@pytest.mark.parametrize("part", ["image_encoder", "text_encoder"])
def test_a_method_that_runs_the_encoders_in_another_way_has_no_features_on_record(part):
    trainer = build(config("CoOp", "tiny", "OPTIM.MAX_EPOCH", 1), NAMES)
    encoder = getattr(trainer.model, part)
    encoder.__class__ = type("Direct", (type(encoder),), {"__call__": type(encoder).forward})
    trainer.num_batches = 1
    trainer.epoch = trainer.batch_idx = 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    (entry,) = trainer._measure_course.entries()
    assert set(entry) == {"epoch", "loss"}


@pytest.mark.parametrize("method", METHODS)
def test_the_course_of_a_trainer_is_that_of_its_npt_form_without_weights(method):
    from npt.trainer import NPTMixin

    cfg = config(method, "tiny", "TRAINER.NPT.W1", 0.0, "TRAINER.NPT.W2", 0.0)
    built = []
    for kind in (None, NPTMixin):
        torch.manual_seed(1)
        built.append(build(cfg, NAMES, kind=kind))
    plain, with_terms = built
    assert isinstance(with_terms, NPTMixin) and not isinstance(plain, NPTMixin)
    for trainer in built:
        trainer.num_batches = len(trainer.train_loader_x)
        for epoch in range(2):
            trainer.epoch = epoch
            for i, batch in enumerate(trainer.train_loader_x):
                trainer.batch_idx = i
                trainer.forward_backward(batch)
    found, expected = (x._measure_course.entries() for x in (plain, with_terms))
    assert len(found) == 2 and {"loss", "lcd", "mid", "nc1"} <= set(found[0])
    for entry, wanted in zip(found, expected, strict=True):
        assert entry == pytest.approx({key: wanted[key] for key in entry}, rel=1e-6)


@pytest.mark.parametrize("method", ["CoOp", "CoCoOp"])
def test_a_context_of_words_gives_zero_shot_clip(method, reference_file):
    node = f"TRAINER.{NODES[method]}"
    trainer = build(config(method, reference_file, f"{node}.CTX_INIT", PHOTO), NAMES)
    if method == "CoCoOp":
        nn.init.zeros_(trainer.model.prompt_learner.meta_net.linear2.weight)
        nn.init.zeros_(trainer.model.prompt_learner.meta_net.linear2.bias)
    texts = [f"{PHOTO} {name.replace('_', ' ')}." for name in NAMES]
    expected = clip_logits(reference_file, trainer.test_loader.images[0], texts)
    torch.testing.assert_close(logits_of(trainer), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dataset", ["", "EuroSAT", "DescribableTextures"])
def test_zero_shot_prompts_have_the_template_of_the_data_set(dataset, reference_file):
    given = CATALOG[dataset].template if dataset else None
    trainer = build(config("ZeroshotCLIP", reference_file), NAMES, template=given)
    template = given or "a photo of a {}."
    texts = [template.format(name.replace("_", " ")) for name in NAMES]
    expected = clip_logits(reference_file, trainer.test_loader.images[0], texts)
    torch.testing.assert_close(logits_of(trainer), expected, rtol=1e-4, atol=1e-3)


def test_a_host_s_data_set_without_a_template_has_that_of_its_name():
    for name in ("EuroSAT", "Food101"):
        host = type(name, (), {})()
        assert template_of(host) == CATALOG[name].template
        host.template = ["a list, as some hosts have it"]
        assert template_of(host) == CATALOG[name].template
        host.template = "{} from above."
        assert template_of(host) == "{} from above."
    assert template_of(type("Unknown", (), {})()) == "a photo of a {}."


@pytest.mark.parametrize("template", [None, "a sketch of {}."])
def test_frozen_text_features_are_those_of_zero_shot_clip(template):
    trainer = build(config("ZeroshotCLIP", "tiny"), NAMES, template=template)
    features = frozen_text_features("tiny", Classes.of(trainer.dm.dataset), torch.device("cpu"))
    assert features.shape[0] == len(NAMES) and not features.requires_grad
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(NAMES)))
    torch.testing.assert_close(features, unit_rows(trainer.model.text_encoder()))


def test_zero_shot_training_only_runs_the_test(reference_file, tmp_path, capsys):
    trainer = trained(config("ZeroshotCLIP", reference_file, output=str(tmp_path)))
    assert "accuracy" in trainer.results["test"]
    assert "epoch [" not in capsys.readouterr().out
    trainer.load_model(str(tmp_path))  # there are no weights to load
    build(
        config("ZeroshotCLIP", reference_file, "TEST.NO_TEST", True, output=str(tmp_path)), NAMES
    ).train()


@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize("where", ["middle", "front"])
def test_class_token_position(where, specific, reference_file):
    """Context vectors that are the embeddings of words give the features of the sentence."""
    cfg = config(
        "CoOp", reference_file, "TRAINER.COOP.N_CTX", 3, "TRAINER.COOP.CSC", specific,
        "TRAINER.COOP.CLASS_TOKEN_POSITION", where,
    )  # fmt: skip
    trainer = build(cfg, NAMES)
    model = load_clip(reference_file)
    words = model.token_embedding(clip.tokenize("one two three"))[0, 1:4]
    trainer.model.prompt_learner.ctx.data.copy_(words)
    layout = {"middle": "one {} two three.", "front": "{} one two three."}[where]
    texts = [layout.format(name.replace("_", " ")) for name in NAMES]
    expected = clip_logits(reference_file, trainer.test_loader.images[0], texts)
    torch.testing.assert_close(logits_of(trainer), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_random_initial_values_are_those_of_the_original_code(method, reference_file):
    node = f"TRAINER.{NODES[method]}"
    cfg = config(method, reference_file, f"{node}.CTX_INIT", "", f"{node}.N_CTX", 3)
    torch.manual_seed(7)
    state = build(cfg, NAMES).model.prompt_learner.state_dict()
    torch.manual_seed(7)
    load_clip(reference_file)  # building a CLIP uses random numbers, too
    assert torch.equal(state["ctx"], torch.empty(3, 128).normal_(std=0.02))
    if method == "CoCoOp":
        one, two = nn.Linear(64, 4), nn.Linear(4, 128)
        assert torch.equal(state["meta_net.linear1.weight"], one.weight)
        assert torch.equal(state["meta_net.linear2.bias"], two.bias)
    if method == "MaPLe":
        proj = nn.Linear(128, 128)
        deep = [torch.empty(3, 128).normal_(std=0.02) for _ in range(8)]
        shared = nn.Linear(128, 128)
        assert torch.equal(state["proj.weight"], proj.weight)
        for i, prompt in enumerate(deep):
            assert torch.equal(state[f"compound_prompts_text.{i}"], prompt)
            weight = state[f"compound_prompt_projections.{i}.weight"]
            assert torch.equal(weight, shared.weight)


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_only_the_prompt_learner(method, reference_file, tmp_path):
    cfg = config(method, reference_file, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.001,
                 output=str(tmp_path))  # fmt: skip
    torch.manual_seed(1)  # of the initial prompts
    trainer = build(cfg, NAMES, random_batches(len(NAMES), 2, 4))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trained_names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(name.startswith("prompt_learner.") for name in trained_names)
    summary = []
    step = trainer.forward_backward
    trainer.forward_backward = lambda batch: summary.append(step(batch)) or summary[-1]
    trainer.train()
    assert set(summary[0]) == ({"loss", "acc"} if method == "CoOp" else {"loss"})
    assert summary[3]["loss"] < summary[1]["loss"]  # the same batch, an epoch later
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= trained_names and "prompt_learner.ctx" in changed
    assert not trainer.model.image_encoder.training and not trainer.model.text_encoder.training


@pytest.mark.parametrize("method", METHODS)
def test_amp_on_the_cpu(method, reference_file):
    cfg = config(method, reference_file, f"TRAINER.{NODES[method]}.PREC", "amp")
    trainer, exact = build(cfg, NAMES), build(config(method, reference_file), NAMES)
    exact.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
    features = []
    trainer.model.text_encoder.register_forward_hook(lambda m, a, out: features.append(out))
    for t in (trainer, exact):
        t.set_model_mode("train")
        t.batch_idx, t.num_batches = 0, 2
    batch = next(iter(trainer.train_loader_x))
    loss, reference = (t.forward_backward(batch)["loss"] for t in (trainer, exact))
    assert features[0].dtype == torch.bfloat16
    assert loss == pytest.approx(reference, rel=0.1)
    for p in trainer.model.prompt_learner.parameters():
        assert p.dtype == torch.float32
        assert p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pairs", [("MODEL.PLAIN_ENCODERS", True), ("MODEL.CLASS_CHUNK", 2)])
def test_other_encoders_give_the_same_training(method, pairs, reference_file):
    fast, other = (build(config(method, reference_file, *p), NAMES) for p in ((), pairs))
    other.model.prompt_learner.load_state_dict(fast.model.prompt_learner.state_dict())
    losses = []
    for trainer in (fast, other):
        trainer.set_model_mode("train")
        trainer.num_batches = 9
        for i, batch in enumerate(trainer.train_loader_x):
            trainer.batch_idx = i
            losses.append(trainer.forward_backward(batch)["loss"])
    half = len(losses) // 2
    assert losses[:half] == pytest.approx(losses[half:], rel=1e-5)
    for new, reference in zip(
        other.model.prompt_learner.parameters(),
        fast.model.prompt_learner.parameters(),
        strict=True,
    ):
        assert (new - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.skipif(not half_runs_on_cpu(), reason="this torch has no float16 on the CPU")
@pytest.mark.parametrize("method", METHODS)
def test_half_weights_with_float32_masters(method, reference_file, monkeypatch):
    """The computation of PREC fp16, run on the CPU, where `check_cfg` does not allow it."""
    for trainer in TRAINERS.values():
        monkeypatch.setattr(trainer, "check_cfg", lambda self, cfg: None)
    cfg = config(method, reference_file, f"TRAINER.{NODES[method]}.PREC", "fp16")
    trainer = build(cfg, NAMES)
    exact = build(config(method, reference_file), NAMES)
    exact.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
    features = []
    trainer.model.text_encoder.register_forward_hook(lambda m, a, out: features.append(out))
    batch = next(iter(trainer.train_loader_x))
    for t in (trainer, exact):
        t.set_model_mode("train")
        t.batch_idx, t.num_batches = 0, 2
    loss, reference = (t.forward_backward(batch)["loss"] for t in (trainer, exact))
    assert features[0].dtype == torch.float16
    assert loss == pytest.approx(reference, rel=0.02)
    assert all(p.dtype == torch.float32 for p in trainer.model.prompt_learner.parameters())
    pairs = zip(trainer.model.prompt_learner.parameters(), exact.model.prompt_learner.parameters(),
                strict=True)  # fmt: skip
    for p, q in pairs:
        if q.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 0.1 * q.grad.abs().max()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales on CUDA only")
def test_a_loss_scaler_does_not_change_the_step(reference_file):
    plain, scaled = (build(config("MaPLe", reference_file), NAMES) for _ in range(2))
    scaled.model.prompt_learner.load_state_dict(plain.model.prompt_learner.state_dict())
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batch = next(iter(plain.train_loader_x))
    for t in (plain, scaled):
        t.set_model_mode("train")
        t.batch_idx, t.num_batches = 0, 2
        t.forward_backward(batch)
    pairs = zip(plain.model.prompt_learner.parameters(), scaled.model.prompt_learner.parameters(),
                strict=True)  # fmt: skip
    for p, q in pairs:
        torch.testing.assert_close(p, q)


# ---- checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_is_loaded_again(method, reference_file, tmp_path, capsys):
    cfg = config(method, reference_file, "OPTIM.MAX_EPOCH", 1, output=str(tmp_path))
    first = trained(cfg)
    folder = {"MaPLe": "MultiModalPromptLearner"}.get(method, "prompt_learner")
    path = tmp_path / folder / "model.pth.tar-1"
    checkpoint = torch.load(path, weights_only=True)
    prefix = "prompt_learner." if method == "MaPLe" else ""
    assert f"{prefix}ctx" in checkpoint["state_dict"]
    assert checkpoint["backbone"] == reference_file and checkpoint["classnames"] == NAMES

    for epoch in (1, None):
        second = build(cfg, NAMES)
        assert not torch.equal(logits_of(second), logits_of(first)) or method == "CoOp"
        second.load_model(str(tmp_path), epoch=epoch)
        assert torch.equal(logits_of(second), logits_of(first))
    assert f'Loading weights to {folder} from "{path}" (epoch = 1)' in capsys.readouterr().out

    others = build(cfg, ["new", "class names"])  # a shared context fits other classes
    others.load_model(str(tmp_path))
    third = build(cfg, NAMES)
    third.load_model("")
    assert "no weights are loaded" in capsys.readouterr().out
    assert third.resume_model_if_exist(str(tmp_path)) == 1
    assert torch.equal(logits_of(third), logits_of(first))


def test_a_run_on_other_classes_is_not_resumed(reference_file, tmp_path):
    cfg = config("CoOp", reference_file, "OPTIM.MAX_EPOCH", 1, output=str(tmp_path))
    trained(cfg)
    others = build(cfg, [*NAMES[:-1], "dog"])
    with pytest.raises(NPTError, match="other images, classes"):
        others.train()


def test_train_counts_are_loaded_with_the_same_classes(reference_file, tmp_path):
    cfg = config("CoOp", reference_file, "OPTIM.MAX_EPOCH", 1, output=str(tmp_path))
    first = trained(cfg)
    again, others = build(cfg, NAMES), build(cfg, ["new", "class names"])
    for trainer in (again, others):
        trainer.load_model(str(tmp_path))
    assert again.train_counts == first.train_counts
    assert others.train_counts is None


@pytest.mark.parametrize("method", METHODS)
def test_init_weights(method, reference_file, tmp_path):
    first = trained(config(method, reference_file, "OPTIM.MAX_EPOCH", 1, output=str(tmp_path)))
    path = next(tmp_path.glob("*/model.pth.tar-1"))
    second = build(config(method, reference_file, "MODEL.INIT_WEIGHTS", str(path)), NAMES)
    assert torch.equal(logits_of(second), logits_of(first))


def save(tmp_path, folder, state, **extra):
    (tmp_path / folder).mkdir(exist_ok=True)
    torch.save({"state_dict": state, "epoch": 5, **extra}, tmp_path / folder / "model.pth.tar-5")


def test_checkpoints_of_the_original_code_are_read(reference_file, tmp_path):
    coop = build(config("CoOp", reference_file), NAMES)
    state = {"ctx": torch.randn(16, 128).half(), "token_prefix": torch.zeros(9, 1, 128)}
    save(tmp_path, "prompt_learner", {**state, "token_suffix": torch.zeros(9, 60, 128)})
    coop.load_model(str(tmp_path), 5)
    assert torch.equal(coop.model.prompt_learner.ctx, state["ctx"].float())

    maple = build(config("MaPLe", reference_file), NAMES)
    learned = {
        f"prompt_learner.{k}": torch.randn_like(v)
        for k, v in maple.model.prompt_learner.state_dict().items()
    }
    whole = {f"module.{k}": v for k, v in learned.items()}
    whole["module.prompt_learner.token_prefix"] = torch.zeros(9, 1, 128)
    whole["module.image_encoder.conv1.weight"] = torch.zeros(128, 3, 8, 8)
    save(tmp_path, "MultiModalPromptLearner", whole)
    maple.load_model(str(tmp_path), 5)
    for key, value in maple.model.prompt_learner.state_dict().items():
        assert torch.equal(value, learned[f"prompt_learner.{key}"])


def test_checkpoints_that_do_not_fit_are_an_error(reference_file, tmp_path):
    def check_error(method, state, message, *pairs, **extra):
        trainer = build(config(method, reference_file, *pairs), NAMES)
        before = {k: v.clone() for k, v in trainer.model.prompt_learner.state_dict().items()}
        folder = {"MaPLe": "MultiModalPromptLearner"}.get(method, "prompt_learner")
        save(tmp_path, folder, state, **extra)
        with pytest.raises(NPTError, match=message):
            trainer.load_model(str(tmp_path), 5)
        for key, value in trainer.model.prompt_learner.state_dict().items():
            assert torch.equal(value, before[key])

    ctx = torch.zeros(16, 128)
    check_error("CoOp", {}, "has no ctx")
    check_error(
        "CoOp", {"ctx": ctx, "meta_net.linear1.weight": ctx}, "also has meta_net.linear1.weight"
    )
    check_error("CoOp", {"ctx": torch.zeros(16, 512)}, r"ctx .*\(16, 512\).*\(16, 128\)")
    check_error("CoOp", {"ctx": ctx}, "ViT-B/16", backbone="ViT-B/16")
    maple = build(config("MaPLe", reference_file), NAMES).model.prompt_learner.state_dict()
    check_error("MaPLe", maple, "compound_prompts_text", "TRAINER.MAPLE.PROMPT_DEPTH", 5)
    specific = {"ctx": torch.zeros(len(NAMES), 16, 128)}
    csc = ("TRAINER.COOP.CSC", True)
    other = [*NAMES[:-1], "dog"]
    check_error("CoOp", specific, "class 4 is 'dog'.*'cat'", *csc, classnames=other)
    check_error("CoOp", {"ctx": torch.zeros(7, 16, 128)}, r"class list", *csc)

    trainer = build(config("CoOp", reference_file, *csc), NAMES)
    save(tmp_path, "prompt_learner", specific, classnames=NAMES, backbone=reference_file)
    trainer.load_model(str(tmp_path), 5)
    with pytest.raises(NPTError, match=r"model\.pth\.tar-7.*--load-epoch"):
        trainer.load_model(str(tmp_path), 7)


def test_a_file_and_the_backbone_of_its_name_are_the_same(reference_file):
    from npt.trainers.checkpoints import check_origin

    here = {"backbone": "/models/ViT-B-16.pt", "classnames": []}
    check_origin({"backbone": "ViT-B/16"}, "x", here, False)
    with pytest.raises(NPTError, match="ViT-B/32"):
        check_origin({"backbone": "ViT-B/32"}, "x", here, False)


# ---- errors


@pytest.mark.parametrize(
    ("method", "pairs", "message"),
    [
        ("MaPLe", ("TRAINER.MAPLE.PREC", "fp16"),
         "^TRAINER.MAPLE.PREC is fp16, which needs a GPU; use fp32 or amp$"),
        ("CoOp", ("TRAINER.COOP.PREC", "fp8"), "TRAINER.COOP.PREC is 'fp8'.*amp"),
        ("CoCoOp", ("TRAINER.COCOOP.PREC", "fp8"), "TRAINER.COCOOP.PREC is 'fp8'.*amp"),
        ("MaPLe", ("TRAINER.MAPLE.PREC", "fp8"), "TRAINER.MAPLE.PREC is 'fp8'.*amp"),
        ("CoOp", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "top"),
         "TRAINER.COOP.CLASS_TOKEN_POSITION is 'top'.*front"),
        ("MaPLe", ("TRAINER.MAPLE.PROMPT_DEPTH", 0), "TRAINER.MAPLE.PROMPT_DEPTH is 0"),
        ("MaPLe", ("TRAINER.MAPLE.PROMPT_DEPTH", 13), "TRAINER.MAPLE.PROMPT_DEPTH is 13"),
        ("MaPLe", ("TRAINER.MAPLE.CTX_INIT", "a photo", "TRAINER.MAPLE.N_CTX", 4),
         "'a photo' has 2 tokens.*N_CTX = 4"),
        ("CoOp", ("INPUT.SIZE", (224, 224)), r"INPUT.SIZE.*\(32, 32\)"),
    ],
)  # fmt: skip
def test_bad_values_are_an_error(method, pairs, message, reference_file):
    with pytest.raises(NPTError, match=message):
        build(config(method, reference_file, *pairs), NAMES)


@pytest.mark.parametrize("method", TRAINERS)
def test_the_nodes_of_other_methods_are_not_checked(method, reference_file):
    bad = {
        "CoOp": ("TRAINER.COOP.PREC", "fp8", "TRAINER.COOP.CLASS_TOKEN_POSITION", "top"),
        "CoCoOp": ("TRAINER.COCOOP.PREC", "fp8", "TRAINER.COCOOP.N_CTX", 0),
        "MaPLe": ("TRAINER.MAPLE.PREC", "fp8", "TRAINER.MAPLE.PROMPT_DEPTH", 99),
    }
    pairs = [x for other, values in bad.items() if other != method for x in values]
    build(config(method, reference_file, *pairs), NAMES)


@pytest.mark.parametrize("method", [*METHODS, "ZeroshotCLIP"])
def test_a_prompt_that_is_too_long(method, reference_file):
    long = "very " * 80 + "long_name"
    with pytest.raises(NPTError, match=r"long_name.*77 tokens"):
        build(config(method, reference_file), [*NAMES, long])


def test_maple_needs_a_vit(tmp_path):
    torch.manual_seed(0)
    resnet = clip.model.CLIP(64, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1)
    path = str(tmp_path / "resnet.pt")
    torch.save(resnet.state_dict(), path)
    with pytest.raises(NPTError, match="ViT"):
        build(config("MaPLe", path), NAMES)
    trainer = trained(config("CoOp", path, "OPTIM.MAX_EPOCH", 1, output=str(tmp_path)))
    for key, value in trainer.model.image_encoder.visual.state_dict().items():
        assert torch.equal(value, resnet.visual.state_dict()[key]), key  # batch norms too


def test_maple_of_another_width_and_depth(tmp_path):
    """A visual width that is not the text width; more layers in one encoder than in the other."""
    torch.manual_seed(0)
    model = clip.model.CLIP(64, 32, 5, 128, 8, 77, 49408, 64, 1, 3)
    path = str(tmp_path / "clip.pt")
    torch.save(model.state_dict(), path)
    trainer = build(config("MaPLe", path), NAMES)
    batch = next(iter(trainer.train_loader_x))
    trainer.model(batch["img"], batch["label"]).backward()
    learner = trainer.model.prompt_learner
    assert learner.proj.weight.shape == (128, 64)
    has = [p.grad is not None for p in learner.compound_prompts_text]
    assert has == [True] * 4 + [False] * 4  # the inputs of the visual layers 1 to 4


# ---- registration and configs


def test_trainers_are_registered_on_demand_and_under_free_names():
    program = """
import sys
import npt, npt.trainers
from dassl.engine import TRAINER_REGISTRY, TrainerX
assert not set(npt.trainers.METHODS) & set(TRAINER_REGISTRY.registered_names())
@TRAINER_REGISTRY.register()
class CoOp(TrainerX): pass
npt.trainers.add_to_registry()
npt.trainers.add_to_registry()
assert "npt.trainers.coop" not in sys.modules
assert TRAINER_REGISTRY.get("CoOp") is CoOp
for name in ("CoCoOp", "MaPLe", "ZeroshotCLIP"):
    assert TRAINER_REGISTRY.get(name) is getattr(npt.trainers, name)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_table_of_methods():
    """Each row has a trainer, and its keys are in the engine's defaults."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    for name, method in npt.trainers.METHODS.items():
        trainer = getattr(npt.trainers, name)
        assert (trainer.__name__, trainer.node) == (name, method.node)
        for key, value in method.keys.items():
            assert cfg.TRAINER[method.node][key] == value.default
            assert value.check is None or value.check.good(value.default)
    with pytest.raises(AttributeError, match="NoMethod"):
        npt.trainers.NoMethod  # noqa: B018


def config_files():
    folder = Path(npt.trainers.__file__).parents[1] / "configs" / "trainers"
    return sorted(f for name in (*METHODS, "ZeroshotCLIP") for f in (folder / name).glob("*.yaml"))


@pytest.mark.parametrize("path", config_files(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_config_files_are_valid(path):
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.merge_from_file(str(path))
    name = cfg.MODEL.BACKBONE.NAME
    assert name == "tiny" or name in clip.available_models()
    assert ((32, 32) if name == "tiny" else (224, 224)) == cfg.INPUT.SIZE
    assert cfg.INPUT.INTERPOLATION == "bicubic"
    method = path.parent.name
    if method in NODES:
        assert cfg.OPTIM.NAME == "sgd" and cfg.OPTIM.WARMUP_CONS_LR == 1e-5
        prec = cfg.TRAINER[NODES[method]].PREC
        assert prec == ("fp32" if name == "tiny" else "fp16")


def test_prompt_texts():
    tokens = class_prompts("a photo of a", ["sea_or_lake"])
    assert torch.equal(tokens, clip.tokenize("a photo of a sea or lake."))
    assert math.prod(tokens.shape) == 77
