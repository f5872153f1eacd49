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
from npt.encoders import TextEncoder
from npt.host.acceleration import Accelerated
from npt.host.truncated import Truncated

NAMES = ["red", "dark green", "blue", "off white", "very dark sky blue", "red wine"]
REPO = Path(__file__).parent / "repo"


@pytest.fixture(scope="module")
def trainers():
    """The package with the host's models, without its trainers."""
    folder = REPO / "trainers"
    spec = importlib.util.spec_from_file_location(
        "host_trainers", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)
    importlib.import_module("host_trainers.speed")
    return package


@pytest.fixture(scope="module")
def models(trainers):
    return trainers.models


@pytest.fixture(scope="module")
def speed(trainers):
    return trainers.speed


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
    """A list that gets the number of tokens at each call of the host's first text layer."""
    counted = []
    norm = model.text_encoder.transformer.resblocks[0].ln_1
    run = norm.forward
    norm.forward = lambda x: counted.append(len(x)) or run(x)
    return counted


def way(model, encoder="text_encoder"):
    """The way that is left first, in words."""
    ways = getattr(model, encoder)._npt_accelerator.ways
    return " ".join([type(x).__name__ for x in ways[:1]])


def only_first_token(model):
    return model.image_encoder._npt_accelerator.ways[0].only_first_token


def step(model, seed=1):
    """The logits of random images, and the gradients of the trained parameters."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, 3, 32, 32, generator=generator).to(model.dtype)
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


def test_without_gradients_texts_are_encoded_once(build, monkeypatch):
    model, runs = build(), []
    encode = TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda *args: runs.append(1) or encode(*args))
    npt.accelerate(model)
    with torch.no_grad():
        first = model(torch.randn(2, 3, 32, 32))
        for changes in range(3):
            runs.clear()
            for _ in range(3):
                model(torch.randn(2, 3, 32, 32))
            assert not runs
            model.prompt_learner.ctx.add_(0.1)
            assert not torch.equal(model(torch.zeros(2, 3, 32, 32)), first)
            assert len(runs) == 1, changes


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
    assert way(model) == "Packed"
    model.train(), plain.train()
    assert_same(model, plain)
    assert way(model) == "Truncated"


def test_parameters_that_are_trained_later_are_detected(build):
    model, plain = build(), build()
    npt.accelerate(model)
    assert_same(model, plain)
    for m in (model, plain):
        m.text_encoder.transformer.resblocks[0].ln_2.requires_grad_(True)
    assert_same(model, plain)
    assert way(model) == "Truncated"


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
    assert len(model.text_encoder._npt_accelerator.ways[0].layouts) == 2
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


# ---- the host's own code, on shorter prompts and with quick modules

TRUNCATED = {
    "ClassAware": "prompt_learner",
    "Inserting": "prompt_learner image_encoder.proj",
    "Adapting": "adapter",
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_code_of_the_host_s_own_between_layers(build, speed, kind):
    learned = TRUNCATED[kind]
    plain, fast = (build(getattr(speed, kind), learned=learned) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        assert_same(fast, plain)
        tokens = calls(fast)
        for model in (plain, fast):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * p.requires_grad)
        assert_same(fast, plain)
    assert way(fast) == "Truncated"
    assert tokens and max(tokens) < 16
    assert only_first_token(fast) == (kind != "Inserting")


@pytest.mark.parametrize("kind", ["Attributes", "Parallel"])
def test_context_is_found_without_names(build, speed, kind):
    """In several parts, and in a text encoder inside DataParallel."""
    plain, fast = build(getattr(speed, kind)), build(getattr(speed, kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(fast)
        for _ in range(2):
            assert_same(fast, plain)
    fast.text_encoder = getattr(fast.text_encoder, "module", fast.text_encoder)
    assert way(fast) == "Packed"


def test_a_model_that_calls_the_transformers_itself(build, speed):
    plain, fast = build(speed.ReadOnly), build(speed.ReadOnly)
    assert npt.accelerate(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert_same(fast, plain)
    assert isinstance(fast.transformer, Accelerated)
    assert isinstance(fast.visual.transformer, Accelerated)


@pytest.mark.parametrize("kind", [*TRUNCATED, "Attributes", "ReadOnly", "shared", "deep"])
def test_in_double_precision_results_agree_to_rounding(build, kinds, speed, kind):
    cls, options = kinds.get(kind) or (getattr(speed, kind), {})
    options = {"learned": TRUNCATED.get(kind, "prompt_learner"), **options}
    models = [in_double(build(cls, **options)) for _ in range(2)]
    npt.accelerate(models[0])
    step(models[0])  # the first pass, which is verified
    (found, gradients), (expected, expected_gradients) = map(step, models)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert gradients.keys() == expected_gradients.keys()
    for name, g in expected_gradients.items():
        torch.testing.assert_close(gradients[name], g, rtol=1e-9, atol=1e-11 * float(g.abs().max()))


def in_double(model):
    model.double()
    for module in model.modules():
        if hasattr(module, "dtype"):
            module.dtype = torch.float64
        if isinstance(module, nn.LayerNorm):
            module.__class__ = nn.LayerNorm  # CLIP's own rounds to single precision
        for name, x in module.__dict__.items():
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                module.__dict__[name] = x.double()
    return model


CHANGED = {
    "output": lambda run, prompts, tokens: run(prompts, tokens) * 1.5 + 0.1,
    "gradient": lambda run, prompts, tokens: run((prompts + prompts.detach()) / 2, tokens),
    "tuple": lambda run, prompts, tokens: (run(prompts, tokens),),
    "dropout": lambda run, prompts, tokens: F.dropout(run(prompts, tokens), 0.5),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_text_encoder_that_computes_more_runs_on_shorter_prompts(build, models, kind):
    class Changed(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            return CHANGED[kind](super().forward, prompts, tokenized_prompts)

    class Reading(models.CustomCLIP):
        def texts(self):
            text = self.text_encoder(self.prompt_learner(), self.tokenized_prompts)
            return F.normalize(text[0] if kind == "tuple" else text, dim=-1)

    model, plain = build(Reading), build(Reading)
    for m in (model, plain):
        m.text_encoder.__class__ = Changed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(model)
        for _ in range(2):
            torch.manual_seed(1)
            found = step(model)
            state = torch.get_rng_state()
            torch.manual_seed(1)
            expected = step(plain)
            assert torch.equal(torch.get_rng_state(), state)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert way(model) == "Truncated"


def test_in_a_test_its_text_features_are_kept_as_well(build, speed, monkeypatch):
    model, plain = build(speed.ClassAware), build(speed.ClassAware)
    runs = []
    run = Truncated._run
    monkeypatch.setattr(Truncated, "_run", lambda *args: runs.append(1) or run(*args))
    npt.accelerate(model)
    image = torch.randn(2, 3, 32, 32)

    def change_a_prompt(m):
        m.prompt_learner.meta.weight.add_(0.1)

    def change_a_weight(m):
        norm = m.text_encoder.ln_final.weight
        norm.mul_(torch.linspace(0.5, 1.5, len(norm)))

    with torch.no_grad():
        for change in (change_a_prompt, change_a_weight):
            for _ in range(3):
                model(image)
            assert len(runs) == 1
            runs.clear()
            change(model), change(plain)
            torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-4)
            assert len(runs) == 1


@pytest.mark.parametrize("where", ["argument", "attribute"])
def test_what_is_kept_in_a_test_does_not_depend_on_modules_elsewhere(build, models, where):
    class Adapted(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts, adapt=None):
            x = super().forward(prompts, tokenized_prompts)
            return x + (adapt or self.elsewhere[0])(x)

    class Model(models.CustomCLIP):
        def texts(self):
            adapt = [self.adapter.__call__] if where == "argument" else []
            texts = self.text_encoder(self.prompt_learner(), self.tokenized_prompts, *adapt)
            return F.normalize(texts, dim=-1)

    pair = [build(Model), build(Model)]
    for model in pair:
        model.text_encoder.__class__ = Adapted
        width = model.text_encoder.text_projection.shape[1]
        model.adapter = nn.Linear(width, width)
        nn.init.zeros_(model.adapter.weight)
        nn.init.zeros_(model.adapter.bias)
        model.text_encoder.elsewhere = [model.adapter]
    npt.accelerate(pair[0])
    for _ in range(3):
        assert_same(*pair)
        with torch.no_grad():
            image = torch.ones(1, 3, 32, 32)
            torch.testing.assert_close(pair[0](image), pair[1](image), rtol=1e-4, atol=1e-4)
            for model in pair:
                model.adapter.weight.add_(0.1)
    assert way(pair[0]) == "Truncated"


def test_a_trained_text_encoder(build):
    model, plain = build(learned="prompt_learner ln_2"), build(learned="prompt_learner ln_2")
    assert npt.accelerate(model)
    for _ in range(2):
        assert_same(model, plain)
    assert way(model) == "Truncated"


def test_prompts_whose_words_change_all_the_time(build):
    model, plain = build(), build()
    npt.accelerate(model)
    for _ in range(9):
        for m in (model, plain):
            m.prompt_learner.token_suffix = m.prompt_learner.token_suffix.roll(1, 0)
            m.tokenized_prompts = m.tokenized_prompts.roll(1, 0)
        assert_same(model, plain)
    assert way(model) == "Truncated"


def test_deep_prompts_of_another_length(build, kinds):
    cls, options = kinds["deep in layers"]
    model, plain = build(cls, **options), build(cls, **options)
    for m in (model, plain):
        layer = m.text_encoder.transformer.resblocks[1]
        layer.VPT_shallow = nn.Parameter(layer.VPT_shallow[:2].detach().clone())
    npt.accelerate(model)
    for _ in range(2):
        assert_same(model, plain)
    assert way(model) == "Truncated"


@pytest.mark.parametrize("when", ["before", "after"])
def test_forward_hooks_inside_an_encoder_see_what_they_always_saw(build, when):
    model, plain = build(), build()
    seen = []
    layers = [m.transformer.resblocks for m in (model.text_encoder, model.image_encoder)]

    def hook():
        for layer in (x for encoder in layers for x in (encoder[0], encoder[-1])):
            layer.register_forward_hook(lambda *args: seen.append(args[-1].detach().clone()))

    if when == "before":
        hook()
    npt.accelerate(model)
    step(model)
    if when == "after":
        hook()
    assert_same(model, plain)
    seen.clear()
    step(model)
    accelerated = [*seen]
    for encoder in (model.text_encoder, model.image_encoder):
        encoder._npt_accelerator.ways = []
    seen.clear()
    step(model)
    assert len(seen) == len(accelerated) == 4
    torch.testing.assert_close(accelerated, seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "deep", "per image", "ClassAware"])
def test_second_derivatives(build, kinds, speed, kind):
    """As in meta-learning, which differentiates gradients."""
    attention = pytest.importorskip("torch.nn.attention")
    cls, options = kinds.get(kind) or (getattr(speed, kind), {})
    models = [in_double(build(cls, **options)) for _ in range(2)]
    npt.accelerate(models[0])
    found = []
    for model in models:
        with attention.sdpa_kernel(attention.SDPBackend.MATH):  # others have no second derivative
            step(model)
            trained = [p for p in model.parameters() if p.requires_grad]
            logits = model(torch.ones(2, 3, 32, 32, dtype=torch.float64).cumsum(-1) / 32)
            loss = F.cross_entropy(logits, torch.tensor([0, 1]))
            first = torch.autograd.grad(loss, trained, create_graph=True)
            squares = sum((g**2).sum() for g in first)
            found.append([*first, *torch.autograd.grad(squares, trained)])
    assert way(models[0]) == ("Truncated" if kind == "ClassAware" else "Packed")
    for a, b in zip(*found, strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * scale)


# ---- the image encoder


def attentions(monkeypatch):
    """A list that gets an entry for each attention of PyTorch's own module."""
    counted = []
    run = F.multi_head_attention_forward
    monkeypatch.setattr(
        F, "multi_head_attention_forward", lambda *a, **k: counted.append(1) or run(*a, **k)
    )
    return counted


@pytest.mark.parametrize("kind", ["visual prompts", "frozen"])
def test_the_image_encoder_is_accelerated(build, models, monkeypatch, kind):
    class Prompted(models.CustomCLIP):
        def __init__(self, *args):
            super().__init__(*args)
            self.image_encoder = models.PromptedViT(self.image_encoder)
            width = self.image_encoder.visual.ln_post.weight.shape[0]
            self.prompt_learner.visual = nn.ParameterList(
                nn.Parameter(torch.randn(3, width) * 0.1) for _ in range(3)
            )

        def images(self, image):
            first, *deep = self.prompt_learner.visual
            return F.normalize(self.image_encoder(image, first, deep), dim=-1)

    cls = Prompted if kind == "visual prompts" else models.CustomCLIP
    model, plain = build(cls), build(cls)
    npt.accelerate(model)
    assert_same(model, plain)
    assert only_first_token(model)
    ran = attentions(monkeypatch)
    step(model)
    assert not ran
    assert_same(model, plain)


def test_other_tokens_of_an_image_are_computed_if_they_are_read_later(build, models):
    class Dense(nn.Module):
        def __init__(self, visual):
            super().__init__()
            self.visual = visual

        def forward(self, image):
            x = self.visual.conv1(image).flatten(2).permute(0, 2, 1)
            x = self.visual.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
            x = self.visual.ln_post(x if not self.training else x[:, :1])
            return x.mean(1) @ self.visual.proj

    class Patches(models.CustomCLIP):
        def __init__(self, *args):
            super().__init__(*args)
            self.image_encoder = Dense(self.image_encoder)

    model, plain = build(Patches), build(Patches)
    npt.accelerate(model)
    assert_same(model, plain)
    assert only_first_token(model)
    model.eval(), plain.eval()
    assert_same(model, plain)
    assert not only_first_token(model)


def test_weights_of_layers_that_are_trained_get_their_gradients(build):
    learned = "prompt_learner image_encoder.transformer.resblocks.1.mlp"
    model, plain = build(learned=learned), build(learned=learned)
    npt.accelerate(model)
    for _ in range(2):
        assert_same(model, plain)
    assert any("mlp" in name for name in step(model)[1])


# ---- models that keep their own computation


def assert_falls_back(model, plain, match):
    """The model warns once, and from then on uses the host's computation."""
    with pytest.warns(UserWarning, match=f"is no longer accelerated where.*{match}") as warned:
        assert_same(model, plain)
        assert_same(model, plain)
    assert len(warned) == 1
    tokens = calls(model)
    step(model)
    assert tokens == [77]


def test_an_encoder_that_changes_itself_runs_once(build, models):
    """As a batch norm does with its running means, or a counter of steps."""

    class Counting(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            self.steps = getattr(self, "steps", 0) + 1
            return super().forward(prompts, tokenized_prompts) * (1 + 0.1 * self.steps)

    model, plain = build(), build()
    for m in (model, plain):
        m.text_encoder.__class__ = Counting
    npt.accelerate(model)
    assert_falls_back(model, plain, "its own computation changes its buffers or attributes")
    assert model.text_encoder.steps == 3


def test_an_encoder_that_differs_every_time_falls_back(build, models):
    class Different(models.TextEncoder):
        counter = iter(range(2, 100))

        def forward(self, prompts, tokenized_prompts):
            return super().forward(prompts, tokenized_prompts) * next(self.counter)

    model = build()
    model.text_encoder.__class__ = Different
    npt.accelerate(model)
    with pytest.warns(UserWarning, match="text features, and falls back.*text features differ by"):
        step(model)
    assert not way(model) and way(model, "image_encoder")


def test_errors_are_the_host_s_own(build, models):
    class Failing(models.TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            raise RuntimeError("the host's own")

    model = build()
    model.text_encoder.__class__ = Failing
    npt.accelerate(model)
    with pytest.raises(RuntimeError, match="the host's own"):
        step(model)


def test_a_model_without_clip_s_layers_is_not_accelerated():
    with pytest.warns(UserWarning, match="Linear is not accelerated: no module of it has layers"):
        assert npt.accelerate(nn.Linear(2, 2)) is False


def test_accelerating_twice_changes_nothing(build):
    model = build()
    assert npt.accelerate(model) and npt.accelerate(nn.DataParallel(model))
    assert type(model.text_encoder).__mro__.count(Accelerated) == 1


def test_npt_s_own_models_need_no_acceleration():
    from trainer_kit import build, config

    model = build(config("CoOp", "tiny"), ["a", "b"]).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npt.accelerate(model)


# ---- the config key MODEL.ACCELERATE


@pytest.mark.parametrize("trainer", ["CoCoOpNPT", "MaPLeNPT", "PromptSRCNPT", "VPTNPT"])
def test_the_key_accelerates_any_trainer(trained, trainer):
    plain, fast = trained(trainer), trained(trainer, "MODEL.ACCELERATE", True)
    assert "accelerated" not in fast.done.stderr
    for key, value in plain.weights.items():
        torch.testing.assert_close(fast.weights[key], value, rtol=1e-3, atol=1e-5)
    assert fast.accuracy == plain.accuracy


def test_the_key_warns_with_a_trainer_without_npt():
    cfg = get_cfg_default()
    cfg.merge_from_list(["MODEL.ACCELERATE", True, "TRAINER.NAME", "CoOp"])
    with pytest.warns(UserWarning, match=r"not on CoOp: .*CoOpNPT with .*W1 0.*npt\.accelerate"):
        cfg.freeze()
