"""npt.accelerate on host models: the same results, or a fallback to the host's computation."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npt
from dassl.config import get_cfg_default
from npt.host.acceleration import Accelerated

NAMES = ["red", "dark green", "blue", "off white", "very dark sky blue", "red wine"]
REPO = Path(__file__).parent / "repo"


@pytest.fixture(scope="module")
def models():
    """The module with the host's models, without its trainers."""
    spec = importlib.util.spec_from_file_location("host_models", REPO / "trainers" / "models.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(models, host_clip, monkeypatch):
    """Builds a model of the host with random prompts; only they require gradients."""
    monkeypatch.setenv(models.CLIP_FILE, host_clip)

    def make(kind=None, csc=False, n=4, names=NAMES, learned="prompt_learner", **more):
        torch.manual_seed(0)
        cfg = SimpleNamespace(TRAINER=SimpleNamespace(HOST=SimpleNamespace(N_CTX=n, CSC=csc)))
        model = (kind or models.CustomCLIP)(cfg, names, models.load_clip_to_cpu(), **more)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(x in name for x in learned.split()))
        return model

    return make


def calls(model):
    """A list that gets an entry for each call of the host's first text layer."""
    counted = []
    layer = model.text_encoder.transformer.resblocks[0]
    run = layer.forward
    layer.forward = lambda *args: counted.append(1) or run(*args)
    return counted


def step(model, seed=1):
    """The logits of random images, and the gradients of the trained parameters."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, 3, 32, 32, generator=generator)
    model.zero_grad()
    logits = model(image)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    return logits.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def assert_same(model, other):
    logits, gradients = step(model)
    expected, expected_gradients = step(other)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    for name, g in expected_gradients.items():
        torch.testing.assert_close(gradients[name], g, rtol=1e-3, atol=1e-4 * float(g.abs().max()))


@pytest.fixture
def kinds(models):
    class Conditional(models.CustomCLIP):
        def make_learner(self, classnames, clip_model):
            super().make_learner(classnames, clip_model)
            self.prompt_learner.meta = nn.Linear(64, self.prompt_learner.ctx.shape[-1])

        def forward(self, image):
            images, learner = self.images(image), self.prompt_learner
            rows = []
            for shift, z in zip(learner.meta(images), images, strict=True):
                prompts = learner.with_context(learner.ctx + shift)
                texts = self.text_encoder(prompts, self.tokenized_prompts)
                rows.append(self.logits(z, F.normalize(texts, dim=-1)))
            return torch.stack(rows)

    class Deep(models.CustomCLIP):
        def make_learner(self, classnames, clip_model):
            super().make_learner(classnames, clip_model)
            learner = self.prompt_learner
            learner.deep = nn.ParameterList(
                nn.Parameter(torch.randn_like(learner.ctx) * 0.1) for _ in range(2)
            )

        def texts(self):
            learner, tokens = self.prompt_learner, self.tokenized_prompts
            return F.normalize(self.text_encoder(learner(), tokens, learner.deep), dim=-1)

    class DeepInLayers(models.CustomCLIP):
        def __init__(self, *args):
            super().__init__(*args)
            for layer in self.text_encoder.transformer.resblocks[1:3]:
                layer.VPT_shallow = nn.Parameter(torch.randn_like(self.prompt_learner.ctx) * 0.1)

    return {
        "shared": (models.CustomCLIP, {}),
        "per class": (models.CustomCLIP, {"csc": True}),
        "per image": (Conditional, {}),
        "deep": (Deep, {}),
        "deep in layers": (DeepInLayers, {"learned": "prompt_learner VPT_shallow"}),
    }


KINDS = ["shared", "per class", "per image", "deep", "deep in layers"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_host_s(build, kinds, kind):
    cls, options = kinds[kind]
    plain, fast = build(cls, **options), build(cls, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        assert_same(fast, plain)  # the first pass, which is verified
        layer_calls = calls(fast)
        assert_same(fast, plain)
        assert not layer_calls  # the host's own layers do not run any more
        for model in (plain, fast):
            with torch.no_grad():
                for parameter in model.prompt_learner.parameters():
                    parameter.add_(0.01)
        assert_same(fast, plain)
        assert not layer_calls


def test_rounding_of_deep_prompts_to_half_is_detected(build, kinds, models):
    """MaPLe's layers round deep prompts to half precision, in any precision."""
    cls, _ = kinds["deep"]

    class RoundingEncoder(models.TextEncoder):
        def forward(self, prompts, tokens, deep=()):
            return super().forward(prompts, tokens, [p.half() for p in deep])

    plain, fast = build(cls), build(cls)
    for model in (plain, fast):
        model.text_encoder.__class__ = RoundingEncoder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        expected, _ = step(plain)
        step(fast)
        layer_calls = calls(fast)
        logits, _ = step(fast)
    assert not layer_calls
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_without_gradients_texts_are_encoded_once(build):
    model = build()
    npt.accelerate(model)
    with torch.no_grad():
        first = model(torch.randn(2, 3, 32, 32))
        runs = []
        encoder = model.text_encoder._npt_accelerator.layouts[0].encoder
        encode = encoder._encode
        encoder._encode = lambda *args: runs.append(1) or encode(*args)
        for _ in range(3):
            model(torch.randn(2, 3, 32, 32))
        assert not runs
        model.prompt_learner.ctx.add_(0.1)
        assert not torch.equal(model(torch.zeros(2, 3, 32, 32)), first)
        assert len(runs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_keep_their_names(build, kinds, kind):
    cls, options = kinds[kind]
    model, plain = build(cls, **options), build(cls, **options)
    npt.accelerate(model)
    step(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert type(model.text_encoder).__name__ == type(plain.text_encoder).__name__
    assert_same(copy.deepcopy(model), plain)


def test_new_class_names_are_detected(build):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    other = build(names=["cat", "brown dog", "fish", "bird", "grey mouse", "whale"])
    for m in (model, plain):
        m.prompt_learner.token_prefix = other.prompt_learner.token_prefix
        m.prompt_learner.token_suffix = other.prompt_learner.token_suffix
        m.tokenized_prompts = other.tokenized_prompts
    assert_same(model, plain)


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"),
    reason="CLIP's layers do not support bfloat16 autocast on CPUs before torch 2.2",
)
def test_autocast(build):
    plain, fast = build(), build()
    npt.accelerate(fast)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        step(fast)
        layer_calls = calls(fast)
        logits, _ = step(fast)
        expected, _ = step(plain)
    assert not layer_calls
    torch.testing.assert_close(logits.float(), expected.float(), rtol=0.05, atol=0.5)


def test_a_change_of_the_positional_embedding_is_detected(build):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    with torch.no_grad():
        for m in (model, plain):
            m.text_encoder.positional_embedding.mul_(1.5)
    assert_same(model, plain)


def test_a_change_of_mode_is_verified_again(build, models):
    class Dropping(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            features = super().forward(prompts, tokenized_prompts)
            return features * (0.5 if self.training else 1.0)

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = Dropping
        m.eval()
    assert npt.accelerate(model)
    assert_same(model, plain)
    model.train(), plain.train()
    assert_falls_back(model, plain, "text features differ")


def test_parameters_that_are_trained_later_are_detected(build):
    model, plain = build(), build()
    npt.accelerate(model)
    assert_same(model, plain)
    for m in (model, plain):
        m.text_encoder.transformer.resblocks[0].ln_2.requires_grad_(True)
    assert_falls_back(model, plain, "give no gradient to CLIP's weights")


def test_two_sets_of_prompts_are_both_accelerated(build, models):
    """The student's text encoder also encodes hand-written prompts, for a teacher."""

    class WithTeacher(models.CustomCLIP):
        def texts(self):
            with torch.no_grad():
                teacher = F.normalize(self.text_encoder(*self.teacher_prompts), dim=-1)
            return F.normalize(super().texts() + teacher, dim=-1)

    def with_teacher():
        model = build(WithTeacher)
        other = build(n=4, names=[f"photo of {name}" for name in NAMES])
        with torch.no_grad():
            model.teacher_prompts = other.prompt_learner(), other.tokenized_prompts
        return model

    model, plain = with_teacher(), with_teacher()
    npt.accelerate(model)
    assert_same(model, plain)
    layer_calls = calls(model)
    assert len(model.text_encoder._npt_accelerator.layouts) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(model, plain)
    assert not layer_calls


def test_keyword_arguments_are_supported(build, models):
    class ByName(models.CustomCLIP):
        def texts(self):
            tokens = self.tokenized_prompts
            text = self.text_encoder(tokenized_prompts=tokens, prompts=self.prompt_learner())
            return F.normalize(text, dim=-1)

    model, plain = build(ByName), build(ByName)
    npt.accelerate(model)
    step(model)
    layer_calls = calls(model)
    assert_same(model, plain)
    assert not layer_calls


def test_the_first_pass_may_be_in_inference_mode(build):
    model, plain = build(), build()
    npt.accelerate(model)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    assert_same(model, plain)


def test_a_model_is_saved_with_the_host_s_class(build, tmp_path):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded.text_encoder) is type(plain.text_encoder)
    assert_same(loaded, plain)


# ---- models that keep their own computation


def assert_falls_back(model, plain, match):
    """The model warns once, and from then on uses the host's computation."""
    with pytest.warns(UserWarning, match=f"is no longer accelerated.*{match}") as warned:
        assert_same(model, plain)
        assert_same(model, plain)
    assert len(warned) == 1
    layer_calls = calls(model)
    step(model)
    assert layer_calls


def test_a_text_encoder_that_changes_its_output_falls_back(build, models):
    class More(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            return super().forward(prompts, tokenized_prompts) * 1.5 + 0.1

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = More
    assert npt.accelerate(model)
    assert_falls_back(model, plain, "text features differ")


def test_different_gradients_fall_back_even_if_the_values_agree(build, models):
    class Stopped(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            half = (prompts + prompts.detach()) / 2
            return super().forward(half, tokenized_prompts)

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = Stopped
    assert npt.accelerate(model)
    assert_falls_back(model, plain, "gradients of its prompts differ")


def test_a_trained_text_encoder_is_not_accelerated(build):
    model, plain = build(learned="prompt_learner ln_2"), build(learned="prompt_learner ln_2")
    with pytest.warns(UserWarning, match="not accelerated"):
        assert not npt.accelerate(model)
    assert_same(model, plain)


def test_prompts_whose_words_change_all_the_time_fall_back(build):
    model, plain = build(), build()
    npt.accelerate(model)
    with pytest.warns(UserWarning, match="change too often") as warned:
        for _ in range(len(NAMES)):
            for m in (model, plain):
                m.prompt_learner.token_suffix = m.prompt_learner.token_suffix.roll(1, 0)
                m.tokenized_prompts = m.tokenized_prompts.roll(1, 0)
            assert_same(model, plain)
    assert len(warned) == 1


@pytest.mark.parametrize("returned", ["a tuple", "an error"])
def test_unexpected_results_and_errors_are_the_host_s_own(build, models, returned):
    class Odd(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts, more=None):
            if more is not None and len(more) == 0:
                raise RuntimeError("the host's own")
            return (super().forward(prompts, tokenized_prompts),)

    class Reading(models.CustomCLIP):
        def texts(self):
            more = None if returned == "a tuple" else ()
            text = self.text_encoder(self.prompt_learner(), self.tokenized_prompts, more)
            return F.normalize(text[0], dim=-1)

    model, plain = build(Reading), build(Reading)
    for m in (model, plain):
        m.text_encoder.__class__ = Odd
    npt.accelerate(model)
    if returned == "a tuple":
        assert_falls_back(model, plain, "returns a tuple")
    else:
        with pytest.raises(RuntimeError, match="the host's own"):
            step(model)


def test_deep_prompts_of_another_length_fall_back(build, kinds):
    cls, options = kinds["deep in layers"]
    model, plain = build(cls, **options), build(cls, **options)
    for m in (model, plain):
        layer = m.text_encoder.transformer.resblocks[1]
        layer.VPT_shallow = nn.Parameter(layer.VPT_shallow[:2].detach().clone())
    npt.accelerate(model)
    assert_falls_back(model, plain, "do not fit prompts of 4 context positions")


def test_layers_with_forward_hooks_fall_back(build):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    hooked = []
    model.text_encoder.transformer.resblocks[0].register_forward_hook(lambda *_: hooked.append(1))
    assert_falls_back(model, plain, "forward hooks are registered inside its text_encoder")
    assert len(hooked) == 3


def test_forward_hooks_that_are_registered_before_prevent_it(build):
    model = build()
    model.text_encoder.transformer.register_forward_pre_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="is not accelerated: forward hooks are registered"):
        assert not npt.accelerate(model)


@pytest.mark.parametrize("kind", ["adapter", "first layer", "no learner", "no encoder"])
def test_an_unknown_layout_is_not_accelerated(build, kind):
    model = build()
    layers = model.text_encoder.transformer.resblocks
    if kind == "adapter":
        layers[1].adapter = nn.Linear(4, 4)
    elif kind == "first layer":
        layers[0].VPT_shallow = nn.Parameter(torch.zeros(4, 4))
    elif kind == "no learner":
        del model.prompt_learner.token_suffix
    else:
        model.text_encoder = None
    before = type(model.text_encoder)
    with pytest.warns(UserWarning, match="is not accelerated: ") as warned:
        assert npt.accelerate(model) is False
    assert len(warned) == 1 and type(model.text_encoder) is before


def test_accelerating_twice_changes_nothing(build):
    model = build()
    assert npt.accelerate(model) and npt.accelerate(nn.DataParallel(model))
    assert type(model.text_encoder).__mro__.count(Accelerated) == 1


def test_npt_s_own_models_need_no_acceleration():
    from trainer_kit import build, config

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(build(config("CoOp", "tiny"), ["a", "b"]).model)


# ---- the config key MODEL.ACCELERATE


@pytest.mark.parametrize("trainer", ["CoCoOpNPT", "MaPLeNPT", "PromptSRCNPT"])
def test_the_key_accelerates_any_trainer(trained, trainer):
    plain, fast = trained(trainer), trained(trainer, "MODEL.ACCELERATE", True)
    assert "accelerated" not in fast.done.stderr
    for key, value in plain.weights.items():
        torch.testing.assert_close(fast.weights[key], value, rtol=1e-3, atol=1e-5)
    assert fast.accuracy == plain.accuracy


def test_the_key_warns_once_if_a_model_is_not_supported(trained):
    stderr = trained("VPTNPT", "MODEL.ACCELERATE", True).done.stderr
    assert stderr.count("is not accelerated: it has no prompt_learner with") == 1


def test_the_key_warns_with_a_trainer_without_npt():
    cfg = get_cfg_default()
    cfg.merge_from_list(["MODEL.ACCELERATE", True, "TRAINER.NAME", "CoOp"])
    with pytest.warns(UserWarning, match=r"not on CoOp: .*CoOpNPT with .*W1 0.*npt\.accelerate"):
        cfg.freeze()
