"""npt.accelerate on host models: the host's own results, faster, or its own computation."""

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
    """The host's models, without its trainers."""
    spec = importlib.util.spec_from_file_location("host_models", REPO / "trainers" / "models.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(models, host_clip, monkeypatch):
    """A model of the host, its prompts drawn anew, nothing but them with gradients."""
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
    """How often the text transformer itself is run."""
    seen = []
    layer = model.text_encoder.transformer.resblocks[0]
    run = layer.forward
    layer.forward = lambda *args: seen.append(1) or run(*args)
    return seen


def step(model, seed=1):
    """The logits of some images, and the gradients of what is learned."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, 3, 32, 32, generator=generator)
    model.zero_grad()
    logits = model(image)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    return logits.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def assert_same(model, other):
    logits, gradients = step(model)
    expected, of_host = step(other)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == of_host.keys()
    for name, g in of_host.items():
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
            for shift, own in zip(learner.meta(images), images, strict=True):
                prompts = learner.with_context(learner.ctx + shift)
                texts = self.text_encoder(prompts, self.tokenized_prompts)
                rows.append(self.logits(own, F.normalize(texts, dim=-1)))
            return torch.stack(rows)

    class Deep(models.CustomCLIP):
        rounds = False

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
def test_values_and_gradients_are_the_host_s(build, kinds, kind):
    cls, options = kinds[kind]
    plain, fast = build(cls, **options), build(cls, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        assert_same(fast, plain)  # the first pass, which is checked
        seen = calls(fast)
        assert_same(fast, plain)
        assert not seen  # CLIP's own layers do not run any more
        for model in (plain, fast):
            with torch.no_grad():
                for parameter in model.prompt_learner.parameters():
                    parameter.add_(0.01)
        assert_same(fast, plain)
        assert not seen


def test_rounding_to_half_of_deep_prompts_is_learned(build, kinds, models):
    """MaPLe's layers round deep prompts to half, whatever the precision."""
    cls, _ = kinds["deep"]

    class Rounding(cls):
        def texts(self):
            learner, tokens = self.prompt_learner, self.tokenized_prompts
            return F.normalize(self.text_encoder(learner(), tokens, learner.deep), dim=-1)

    class RoundingEncoder(models.TextEncoder):
        def forward(self, prompts, tokens, deep=()):
            return super().forward(prompts, tokens, [p.half() for p in deep])

    plain, fast = build(Rounding), build(Rounding)
    for model in (plain, fast):
        model.text_encoder.__class__ = RoundingEncoder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        expected, _ = step(plain)
        step(fast)
        seen = calls(fast)
        logits, _ = step(fast)
    assert not seen
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_in_a_test_texts_are_encoded_once(build):
    model = build()
    npt.accelerate(model)
    with torch.no_grad():
        first = model(torch.randn(2, 3, 32, 32))
        runs = []
        fast = model.text_encoder._npt_fast.layouts[0].encoder
        encode = fast._encode
        fast._encode = lambda *args: runs.append(1) or encode(*args)
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


def test_new_class_names_are_noticed(build):
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
    reason="CLIP's own layers take no bfloat16 autocast on CPUs before torch 2.2",
)
def test_autocast(build):
    plain, fast = build(), build()
    npt.accelerate(fast)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        step(fast)
        seen = calls(fast)
        logits, _ = step(fast)
        expected, _ = step(plain)
    assert not seen
    torch.testing.assert_close(logits.float(), expected.float(), rtol=0.05, atol=0.5)


def test_a_change_of_the_positions_is_noticed(build):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    with torch.no_grad():
        for m in (model, plain):
            m.text_encoder.positional_embedding.mul_(1.5)
    assert_same(model, plain)


def test_what_changes_after_the_check_is_checked_again(build, models):
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
    stepped_aside(model, plain, "text features differ")


def test_parameters_that_begin_to_learn_are_noticed(build):
    model, plain = build(), build()
    npt.accelerate(model)
    assert_same(model, plain)
    for m in (model, plain):
        m.text_encoder.transformer.resblocks[0].ln_2.requires_grad_(True)
    stepped_aside(model, plain, "give no gradient to CLIP's weights")


def test_two_sets_of_prompts_are_both_known(build, models):
    """A teacher's hand-written prompts through the text encoder of the student."""

    class Taught(models.CustomCLIP):
        def texts(self):
            with torch.no_grad():
                written = self.written(*self.by_hand)
            return F.normalize(super().texts() + written, dim=-1)

        def written(self, prompts, tokens):
            return F.normalize(self.text_encoder(prompts, tokens), dim=-1)

    def made():
        model = build(Taught)
        other = build(n=4, names=[f"photo of {name}" for name in NAMES])
        with torch.no_grad():
            model.by_hand = other.prompt_learner(), other.tokenized_prompts
        return model

    model, plain = made(), made()
    npt.accelerate(model)
    assert_same(model, plain)
    seen = calls(model)
    assert len(model.text_encoder._npt_fast.layouts) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(model, plain)
    assert not seen


def test_keywords_are_understood(build, models):
    class ByName(models.CustomCLIP):
        def texts(self):
            tokens = self.tokenized_prompts
            text = self.text_encoder(tokenized_prompts=tokens, prompts=self.prompt_learner())
            return F.normalize(text, dim=-1)

    model, plain = build(ByName), build(ByName)
    npt.accelerate(model)
    step(model)
    seen = calls(model)
    assert_same(model, plain)
    assert not seen


def test_a_first_pass_in_inference_mode_is_no_hindrance(build):
    model, plain = build(), build()
    npt.accelerate(model)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    assert_same(model, plain)


def test_a_model_is_saved_as_the_host_s_own(build, tmp_path):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded.text_encoder) is type(plain.text_encoder)
    assert_same(loaded, plain)


# ---- what it must not touch


def stepped_aside(model, plain, match):
    """It warns once, and computes as the host does from then on."""
    with pytest.warns(UserWarning, match=match) as told:
        assert_same(model, plain)
        assert_same(model, plain)
    assert len(told) == 1


def test_a_text_encoder_that_does_more_is_left_alone(build, models):
    class More(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            return super().forward(prompts, tokenized_prompts) * 1.5 + 0.1

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = More
    assert npt.accelerate(model)
    stepped_aside(model, plain, "text features differ")


def test_gradients_that_differ_are_seen_though_values_agree(build, models):
    class Stopped(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            half = (prompts + prompts.detach()) / 2
            return super().forward(half, tokenized_prompts)

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = Stopped
    assert npt.accelerate(model)
    stepped_aside(model, plain, "gradients of its prompts differ")


def test_a_trained_text_encoder_is_left_alone(build):
    model, plain = build(learned="prompt_learner ln_2"), build(learned="prompt_learner ln_2")
    with pytest.warns(UserWarning, match="not accelerated"):
        assert not npt.accelerate(model)
    assert_same(model, plain)


def test_prompts_that_change_their_words_all_the_time_are_left_alone(build):
    model, plain = build(), build()
    npt.accelerate(model)
    with pytest.warns(UserWarning, match="change too often") as told:
        for _ in range(len(NAMES)):
            for m in (model, plain):
                m.prompt_learner.token_suffix = m.prompt_learner.token_suffix.roll(1, 0)
                m.tokenized_prompts = m.tokenized_prompts.roll(1, 0)
            assert_same(model, plain)
    assert len(told) == 1


@pytest.mark.parametrize("returned", ["a tuple", "an error"])
def test_whatever_goes_wrong_at_first_is_the_host_s_to_answer(build, models, returned):
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
        stepped_aside(model, plain, "returns a tuple")
    else:
        with pytest.raises(RuntimeError, match="the host's own"):
            step(model)


def test_deep_prompts_of_another_length_are_left_alone(build, kinds):
    cls, options = kinds["deep in layers"]
    model, plain = build(cls, **options), build(cls, **options)
    for m in (model, plain):
        layer = m.text_encoder.transformer.resblocks[1]
        layer.VPT_shallow = nn.Parameter(layer.VPT_shallow[:2].detach().clone())
    npt.accelerate(model)
    stepped_aside(model, plain, "do not fit prompts of 4 context positions")


def test_layers_that_somebody_listens_to_are_left_alone(build):
    model, plain = build(), build()
    npt.accelerate(model)
    step(model)
    heard = []
    model.text_encoder.transformer.resblocks[0].register_forward_hook(lambda *_: heard.append(1))
    stepped_aside(model, plain, "somebody listens")
    assert len(heard) == 2


@pytest.mark.parametrize("kind", ["adapter", "first layer", "no learner", "no encoder"])
def test_an_unknown_layout_is_left_alone(build, kind):
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
    with pytest.warns(UserWarning, match="is not accelerated: ") as told:
        assert npt.accelerate(model) is False
    assert len(told) == 1 and type(model.text_encoder) is before


def test_accelerating_twice_is_accelerating_once(build):
    model = build()
    assert npt.accelerate(model) and npt.accelerate(nn.DataParallel(model))
    assert type(model.text_encoder).__mro__.count(Accelerated) == 1


def test_our_own_models_are_as_fast_already():
    from trainer_kit import build, config

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(build(config("CoOp", "tiny"), ["a", "b"]).model)


# ---- by the config


@pytest.mark.parametrize("trainer", ["CoCoOpNPT", "MaPLeNPT", "PromptSRCNPT"])
def test_the_key_accelerates_any_trainer(trained, trainer):
    plain, fast = trained(trainer), trained(trainer, "MODEL.ACCELERATE", True)
    assert "accelerated" not in fast.done.stderr
    for key, value in plain.weights.items():
        torch.testing.assert_close(fast.weights[key], value, rtol=1e-3, atol=1e-5)
    assert fast.accuracy == plain.accuracy


def test_the_key_warns_once_where_it_cannot(trained):
    told = trained("VPTNPT", "MODEL.ACCELERATE", True).done.stderr
    assert told.count("is not accelerated: it has no prompt_learner with") == 1


def test_the_key_says_that_it_acts_on_npt_trainers():
    cfg = get_cfg_default()
    cfg.merge_from_list(["MODEL.ACCELERATE", True, "TRAINER.NAME", "CoOp"])
    with pytest.warns(UserWarning, match=r"not on CoOp: .*CoOpNPT with .*W1 0.*npt\.accelerate"):
        cfg.freeze()
