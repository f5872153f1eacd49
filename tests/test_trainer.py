"""NPT around host trainers of every kind: it adds what autograd of the plain sum gives."""

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode as CN

import npt  # noqa: F401  lets dassl be imported
from dassl.engine import TRAINER_REGISTRY
from npt import trainer as npt_trainer
from npt.errors import NPTError
from npt.features import FeatureTap
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss
from npt.trainer import NPTMixin

K, D, B = 5, 8, 4


def config(w1=0.3, w2=0.8, reduction="class"):
    node = {"W1": w1, "W2": w2, "E_W": 1.0, "E_H": 2.0, "REDUCTION": reduction, "BASE": ""}
    return CN({"TRAINER": {"NPT": node, "NAME": "Host"}})


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(K, D))

    def forward(self, shift):
        return torch.tanh(self.table + shift)


class TwoTowers(nn.Module):
    """A model of the family in small; `style` says what it returns and how it runs its texts."""

    def __init__(self, style="loss"):
        super().__init__()
        self.style = style
        self.prompt_learner = nn.Linear(D, D)
        self.text_encoder = TextEncoder()
        self.image_encoder = nn.Linear(6, D)

    def forward(self, image, label=None):
        z = F.normalize(self.image_encoder(image), dim=-1)
        if "per image" in self.style:
            texts = [self.text_encoder(self.prompt_learner(row)) for row in z]
            logits = torch.stack(
                [10 * F.normalize(g, dim=-1) @ row for g, row in zip(texts, z, strict=True)]
            )
        else:
            text = self.text_encoder(self.prompt_learner.bias)
            logits = 10 * z @ F.normalize(text, dim=-1).T
        if "loss" not in self.style or label is None:
            return (logits, z) if "tuple" in self.style else logits
        loss = F.cross_entropy(logits, label)
        if "named" in self.style:
            return namedtuple("Out", "loss logits")(loss, logits)
        return (loss, logits) if "tuple" in self.style else loss


class Host:
    """A trainer of the family, without the engine around it."""

    scaler = None

    def __init__(self, cfg, style="loss"):
        self.cfg = cfg
        torch.manual_seed(0)
        self.model = TwoTowers(style)
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def check_cfg(self, cfg):
        pass

    def loss(self, batch):
        out = self.model(batch["img"], batch["label"])
        first = out[0] if isinstance(out, tuple) else out
        return first if first.dim() == 0 else F.cross_entropy(first, batch["label"])

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return {"loss": loss.item(), "acc": 50.0}


class WithOwnTerms(Host):
    """Like KgCoOp or PromptSRC: a loss of its own on top of what the model gives."""

    def loss(self, batch):
        return super().loss(batch) + 0.1 * self.model.prompt_learner.weight.square().sum()


class WithScaler(Host):
    """Mixed precision as upstream has it: the loss is multiplied, the gradients divided."""

    class Scaler:
        def scale(self, x):
            return x * 1024.0

    def __init__(self, *args):
        super().__init__(*args)
        self.scaler = self.Scaler()

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad /= 1024.0
        self.optim.step()
        return {"loss": loss.item()}


def wrapped(base, *args):
    return type("HostNPT", (NPTMixin, base), {})(*args)


def batches(n=1):
    g = torch.Generator().manual_seed(7)
    return [
        {"img": torch.randn(B, 6, generator=g), "label": torch.randint(K, (B,), generator=g)}
        for _ in range(n)
    ]


def plain_terms(model, batch, node):
    """w1 L_LC + w2 L_MI from the features computed by hand, in a pass of their own."""
    image = model.image_encoder(batch["img"])
    if "per image" in model.style:
        rows = F.normalize(image, dim=-1)
        text = torch.stack([model.text_encoder(model.prompt_learner(row)) for row in rows])
    else:
        text = model.text_encoder(model.prompt_learner.bias)
    lc = language_collapse_loss(text, node.E_W, node.REDUCTION)
    mi = multimodal_isomorphism_loss(
        image, text, batch["label"], node.E_W, node.E_H, node.REDUCTION
    )
    return lc, mi


STYLES = [
    "loss",
    "logits",
    "loss per image",
    "logits per image",
    "loss tuple",
    "named loss tuple",
    "logits tuple",
]


@pytest.mark.parametrize("reduction", ["mean", "class", "sum"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("base", [Host, WithOwnTerms, WithScaler])
def test_the_step_descends_the_plain_sum(base, style, reduction):
    cfg = config(reduction=reduction)
    (batch,) = batches()
    reference = base(cfg, style)
    own = reference.loss(batch)
    lc, mi = plain_terms(reference.model, batch, cfg.TRAINER.NPT)
    (own + 0.3 * lc + 0.8 * mi).backward()
    trainer = wrapped(base, cfg, style)
    summary = trainer.forward_backward(batch)
    for name, p in trainer.model.named_parameters():
        expected = dict(reference.model.named_parameters())[name].grad
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)
    total = (own + 0.3 * lc + 0.8 * mi).item()
    assert summary["loss"] == pytest.approx(total, rel=1e-5)
    assert summary["loss_clip"] == pytest.approx(own.item(), rel=1e-5)
    assert summary["loss_lc"] == pytest.approx(lc.item(), rel=1e-5)
    assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-5)


def test_the_summary_names_the_terms_and_keeps_the_host_s_entries():
    summary = wrapped(Host, config()).forward_backward(batches()[0])
    assert list(summary) == ["loss", "loss_clip", "loss_lc", "loss_mi", "lcd", "mid", "acc"]
    assert all(isinstance(value, float) for value in summary.values())
    assert summary["lcd"] >= 0 >= summary["mid"]


@pytest.mark.parametrize("style", STYLES)
def test_with_both_weights_zero_it_is_the_wrapped_trainer_bit_for_bit(style):
    plain, ours = Host(config(), style), wrapped(Host, config(0.0, 0.0), style)
    for batch in batches(6):
        expected = plain.forward_backward(batch)
        summary = ours.forward_backward(batch)
        assert summary["loss"] == summary["loss_clip"] == expected["loss"]
        assert summary["loss_lc"] > 0 and summary["loss_mi"] > 0
    for a, b in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.0, 0.8)])
@pytest.mark.parametrize("style", ["loss", "logits"])
def test_a_term_without_weight_is_logged_and_not_minimised(style, weights):
    cfg = config(*weights)
    (batch,) = batches()
    reference = Host(cfg, style)
    lc, mi = plain_terms(reference.model, batch, cfg.TRAINER.NPT)
    (reference.loss(batch) + weights[0] * lc + weights[1] * mi).backward()
    trainer = wrapped(Host, cfg, style)
    summary = trainer.forward_backward(batch)
    expected = dict(reference.model.named_parameters())
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-4, atol=1e-6)
    assert summary["loss_lc"] == pytest.approx(lc.item(), rel=1e-5)
    assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-5)


def test_terms_pull_texts_apart_and_images_to_their_texts():
    trainer = wrapped(Host, config(3.0, 3.0))
    steps = [trainer.forward_backward(batches()[0]) for _ in range(40)]
    assert steps[-1]["loss_lc"] < steps[0]["loss_lc"] / 2
    assert steps[-1]["loss_mi"] < steps[0]["loss_mi"] / 2


def test_autocast_around_the_pass_does_not_lower_the_terms():
    class Amp(Host):
        def loss(self, batch):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().loss(batch)

    trainer = wrapped(Amp, config(reduction="sum"))
    model = copy.deepcopy(trainer.model)
    (batch,) = batches()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text = model.text_encoder(model.prompt_learner.bias)
        image = model.image_encoder(batch["img"])
    summary = trainer.forward_backward(batch)
    expected = language_collapse_loss(text.float(), reduction="sum").item()
    assert image.dtype == torch.bfloat16
    assert summary["loss_lc"] == pytest.approx(expected, rel=1e-6)


def test_a_loss_in_half_is_added_to_in_float32():
    class Half(Host):
        def __init__(self, cfg):
            super().__init__(cfg)
            forward = self.model.forward
            self.model.forward = lambda *args: forward(*args).half()

    (batch,) = batches()
    told = wrapped(Half, config(reduction="sum")).forward_backward(batch)
    exact = wrapped(Host, config(reduction="sum")).forward_backward(batch)
    assert told["loss_lc"] == exact["loss_lc"]
    assert told["loss"] == pytest.approx(exact["loss"], rel=2e-3)
    assert told["loss"] != torch.tensor(told["loss"]).half().item()


def test_a_first_pass_without_gradient_is_passed_over():
    class Looking(Host):
        def loss(self, batch):
            with torch.no_grad():
                self.model(batch["img"])
            return super().loss(batch)

    one, other = wrapped(Looking, config()), wrapped(Host, config())
    (batch,) = batches()
    assert one.forward_backward(batch) == other.forward_backward(batch)


def test_a_host_that_reports_no_loss_gets_one():
    class Silent(Host):
        def forward_backward(self, batch):
            super().forward_backward(batch)

    (batch,) = batches()
    for style in ("loss", "logits"):
        told = wrapped(Host, config(), style).forward_backward(batch)
        silent = wrapped(Silent, config(), style).forward_backward(batch)
        assert silent == pytest.approx({k: v for k, v in told.items() if k != "acc"})


def test_no_hooks_stay_behind_even_after_an_error():
    class Failing(Host):
        def loss(self, batch):
            raise RuntimeError("out of luck")

    trainer = wrapped(Failing, config())
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.forward_backward(batches()[0])
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_what_cannot_be_wrapped_is_told_in_a_sentence():
    (batch,) = batches()
    trainer = wrapped(Host, config())
    del trainer.model.text_encoder
    with pytest.raises(NPTError, match="TwoTowers has no module `text_encoder`"):
        trainer.forward_backward(batch)

    class Elsewhere(Host):
        def loss(self, batch):
            text = self.model.text_encoder(self.model.prompt_learner.bias)
            return F.cross_entropy(self.model.image_encoder(batch["img"]) @ text.T, batch["label"])

    with pytest.raises(NPTError, match=r"did not run self\.model"):
        wrapped(Elsewhere, config()).forward_backward(batch)

    class Headless(Host):
        def __init__(self, cfg):
            super().__init__(cfg)
            del self.model

    with pytest.raises(NPTError, match="no `model`"):
        wrapped(Headless, config()).forward_backward(batch)


def test_a_model_that_returns_neither_loss_nor_logits_is_refused():
    trainer = wrapped(Host, config())
    trainer.model.forward = lambda image, label: trainer.model.image_encoder(image)[None]
    with pytest.raises(NPTError, match="scalar loss or to logits"):
        trainer.forward_backward(batches()[0])


def test_encoders_that_are_bypassed_are_named():
    trainer = wrapped(Host, config())
    encode = trainer.model.text_encoder.forward
    trainer.model.forward = lambda image, label: F.cross_entropy(
        trainer.model.image_encoder(image) @ encode(trainer.model.prompt_learner.bias).T, label
    )
    with pytest.raises(NPTError, match="text_encoder was not run"):
        trainer.forward_backward(batches()[0])


def test_the_config_is_checked_again_by_the_trainer():
    trainer = wrapped(Host, config())
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.W1 is -1"):
        trainer.check_cfg(config(w1=-1.0))
    with pytest.raises(NPTError, match=r"no key TRAINER\.NPT\.W1"):
        trainer.check_cfg(CN({"TRAINER": {}}))


# ---- what the tap makes of several calls in one pass


def run(model, calls):
    with FeatureTap(model) as tap:
        calls(model)
        return tap.take()


def test_a_teacher_without_gradient_is_not_mistaken_for_the_student():
    def both(model):
        with torch.no_grad():
            model.text_encoder(torch.ones(D))
            model.image_encoder(torch.ones(3, 6))
        both.text = model.text_encoder(torch.zeros(D))
        both.image = model.image_encoder(torch.zeros(3, 6))

    features = run(TwoTowers(), both)
    assert features.text is both.text and features.image is not None
    assert torch.equal(features.image, both.image)


def test_calls_that_fit_nothing_are_refused():
    def twice(model):
        model.image_encoder(torch.ones(3, 6))
        for _ in range(2):
            model.text_encoder(torch.zeros(D))

    with pytest.raises(NPTError, match="text_encoder ran 2 times for 3 images"):
        run(TwoTowers(), twice)


def test_the_model_inside_data_parallel_is_found():
    model = TwoTowers()

    def calls(parallel):
        parallel(torch.ones(2, 6))

    features = run(nn.DataParallel(model), calls)
    assert features.image.shape == (2, D) and features.text.shape == (K, D)


# ---- registration


def test_the_three_names_are_registered_and_registering_again_is_harmless():
    npt_trainer.register()
    names = TRAINER_REGISTRY.registered_names()
    assert {"CoCoOpNPT", "MaPLeNPT", "NPT"} <= set(names)
    assert len(names) == len(set(names))


def test_npt_wraps_the_trainer_that_base_names():
    class HostOfTests(Host):
        pass

    if "HostOfTests" not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(HostOfTests)
    cfg = config()
    cfg.TRAINER.NPT.BASE = "HostOfTests"
    trainer = TRAINER_REGISTRY.get("NPT")(cfg)
    assert isinstance(trainer, NPTMixin) and isinstance(trainer, Host)
    assert type(trainer).__name__ == "HostOfTestsNPT"
    assert trainer.forward_backward(batches()[0])["loss_mi"] > 0


@pytest.mark.parametrize("base", ["", "NoSuchTrainer", "MaPLeNPT"])
def test_npt_without_a_base_names_those_there_are(base):
    cfg = config()
    cfg.TRAINER.NPT.BASE = base
    with pytest.raises(NPTError, match=r"one of .*MaPLe.*TRAINER\.NPT\.BASE"):
        TRAINER_REGISTRY.get("NPT")(cfg)


def test_ours_are_wrapped_where_a_host_has_none():
    for base in ("CoCoOp", "MaPLe"):
        cls = npt_trainer.npt_class(base)
        assert issubclass(cls, TRAINER_REGISTRY.get(base)) and cls.__name__ == f"{base}NPT"
