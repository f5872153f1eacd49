"""NPT around host trainers of every kind: it adds what autograd of the plain sum gives."""

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode as CN

import npt
from dassl.engine import TRAINER_REGISTRY
from npt import registry
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

    with pytest.raises(NPTError, match="no module `model`"):
        wrapped(Headless, config()).forward_backward(batch)


def test_a_model_that_returns_neither_loss_nor_logits_is_refused():
    for returned in ("nothing", torch.zeros(B, K), {"note": 1}, ()):
        trainer = wrapped(Host, config())
        trainer.model.forward = lambda image, label, it=returned: it
        with pytest.raises(NPTError, match=r"scalar loss or to logits"):
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
    def uneven(model):
        model.image_encoder(torch.ones(3, 6))
        for rows in (1, 2):
            model.text_encoder(torch.zeros(rows, 1, D))

    with pytest.raises(NPTError, match="text_encoder ran 2 times for 3 images"):
        run(TwoTowers(), uneven)

    def too_many(model):
        model.image_encoder(torch.ones(3, 6))
        model.text_encoder(torch.zeros(D))

    with (
        pytest.raises(NPTError, match=r"of 4 classes .* \(model, batch\)"),
        FeatureTap(TwoTowers()) as tap,
    ):
        too_many(tap.model)
        tap.take(classes=4)


# ---- several prompts a class, kept texts, adapters


class Prompts(TwoTowers):
    """N prompts a class, run one by one, all at once, or class by class."""

    def __init__(self, count, how="one by one"):
        super().__init__("logits")
        self.how, self.shifts = how, nn.Parameter(torch.randn(count, D))

    def each(self):
        """(N, K, D)"""
        return torch.tanh(self.text_encoder.table + self.shifts[:, None])

    def forward(self, image, label=None):
        z = F.normalize(self.image_encoder(image), dim=-1)
        if self.how == "one by one":
            text = torch.stack([self.text_encoder(shift) for shift in self.shifts])
        elif self.how == "at once":
            text = self.text_encoder(self.shifts[:, None])
        else:
            each = self.each().transpose(0, 1)  # (K, N, D)
            encode = self.text_encoder.forward
            self.text_encoder.forward = lambda x: x
            text = torch.stack([self.text_encoder(x) for x in each]).transpose(0, 1)
            self.text_encoder.forward = encode
        text = F.normalize(F.normalize(text, dim=-1).mean(0), dim=-1)
        return 10 * z @ text.T


class Several(Host):
    def __init__(self, cfg, *args):
        super().__init__(cfg)
        torch.manual_seed(0)
        self.model = Prompts(*args)
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("how", ["one by one", "at once", "class by class"])
@pytest.mark.parametrize("count", [2, B, K + 2])
def test_several_prompts_a_class_are_averaged(count, how):
    """B prompts are not mistaken for those of B images."""
    cfg = config()
    (batch,) = batches()
    reference = Several(cfg, count, how)
    each = reference.model.each()
    text = F.normalize(each, dim=-1).mean(0)
    image = reference.model.image_encoder(batch["img"])
    lc = language_collapse_loss(text, 1.0, "class")
    mi = multimodal_isomorphism_loss(image, text, batch["label"], 1.0, 2.0, "class")
    (reference.loss(batch) + 0.3 * lc + 0.8 * mi).backward()
    trainer = wrapped(Several, cfg, count, how)
    summary = trainer.forward_backward(batch)
    assert summary["loss_lc"] == pytest.approx(lc.item(), rel=1e-5)
    assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-5)
    expected = reference.model.shifts.grad
    torch.testing.assert_close(trainer.model.shifts.grad, expected, rtol=1e-4, atol=1e-6)


def test_asking_the_model_leaves_the_random_state_alone():
    trainer = wrapped(Several, config(), B)
    forward = trainer.model.forward
    trainer.model.forward = lambda *args: forward(*args) + torch.rand(())
    torch.manual_seed(3)
    trainer.forward_backward(batches()[0])
    one = torch.rand(())
    torch.manual_seed(3)
    torch.rand(())  # the pass of the step itself
    assert one == torch.rand(())


class Keeping(Host):
    """Encodes its texts once, without gradient, like prompts in the image encoder alone."""

    class Model(TwoTowers):
        kept = None

        def forward(self, image, label=None):
            if self.kept is None:
                with torch.no_grad():
                    self.kept = F.normalize(self.text_encoder(torch.zeros(D)), dim=-1)
            return 10 * F.normalize(self.image_encoder(image), dim=-1) @ self.kept.T

    def __init__(self, cfg):
        super().__init__(cfg)
        self.model.__class__ = self.Model


def test_kept_texts_are_those_heard_before():
    trainer = wrapped(Keeping, config())
    text = trainer.model.text_encoder(torch.zeros(D)).detach()
    for batch in batches(3):
        image = trainer.model.image_encoder(batch["img"])
        mi = multimodal_isomorphism_loss(image, text, batch["label"], 1.0, 2.0, "class")
        summary = trainer.forward_backward(batch)
        assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-5)


def test_texts_that_learn_are_not_taken_for_kept_ones():
    trainer = wrapped(Host, config(), "logits")
    trainer.forward_backward(batches()[0])
    trainer.model.forward = lambda image, label: trainer.model.image_encoder(image)[:, :K]
    with pytest.raises(NPTError, match="text_encoder was not run"):
        trainer.forward_backward(batches()[0])


def adapted(features, model=None):
    return type("HostNPT", (NPTMixin, Host), {"features_adapter": staticmethod(features)})(config())


def test_an_adapter_s_features_are_taken_and_none_of_them_is_the_encoder_s():
    (batch,) = batches()
    plain = wrapped(Host, config()).forward_backward(batch)
    seen = []

    def text_only(model, batch):
        seen.append((type(model), sorted(batch)))
        return npt.Features(None, model.text_encoder(model.prompt_learner.bias))

    def both(model, batch):
        return npt.Features(model.image_encoder(batch["img"]), text_only(model, batch).text)

    for adapter in (text_only, both):
        assert adapted(adapter).forward_backward(batch) == pytest.approx(plain)
    assert seen == [(TwoTowers, ["img", "label"])] * 2
    other = adapted(lambda model, batch: (None, torch.eye(K, D)))
    assert other.forward_backward(batch)["loss_lc"] != plain["loss_lc"]


@pytest.mark.parametrize(
    "returned, said",
    [
        (torch.zeros(2), r"returned a Tensor, where npt\.Features"),
        (npt.Features(torch.zeros(B), None), r"shapes \(4,\), None"),
        (npt.Features(torch.zeros(B, D), torch.zeros(2, K, D)), r"\(4, 8\), \(2, 5, 8\)"),
        (npt.Features(torch.zeros(2, D), torch.zeros(K, D)), "2 images were encoded for a batch"),
    ],
)
def test_an_adapter_that_returns_something_else_is_told(returned, said):
    with pytest.raises(NPTError, match=said):
        adapted(lambda model, batch: returned).forward_backward(batches()[0])


# ---- tuples, and several backward passes


def test_the_terms_find_the_loss_wherever_it_is_among_what_is_returned():
    class Second(Host):
        def loss(self, batch):
            _, loss = self.model(batch["img"], batch["label"])
            return loss

    def forward(model, image, label):
        logits = TwoTowers.forward(model, image)
        return logits.detach(), F.cross_entropy(logits, label)

    (batch,) = batches()
    plain = wrapped(Host, config(), "logits")
    expected = plain.forward_backward(batch)
    for output in (tuple, list, lambda x: dict(zip(("logits", "loss"), x, strict=True))):
        trainer = wrapped(Second, config(), "logits")
        model = trainer.model
        model.forward = lambda *args, model=model, output=output: output(forward(model, *args))
        if output not in (tuple, list):
            trainer.loss = lambda batch, model=model: model(batch["img"], batch["label"])["loss"]
        summary = trainer.forward_backward(batch)
        assert summary == pytest.approx(expected)
        for a, b in zip(model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


class TwoBackward(Host):
    """Two losses of one pass, one after the other, with what lies between them up to `first`."""

    def forward_backward(self, batch):
        output = self.model(batch["img"], batch["label"])
        self.optim.zero_grad()
        output.square().mean().backward(retain_graph=True)
        self.first = self.model.prompt_learner.bias.grad.clone()
        F.cross_entropy(output, batch["label"]).backward()
        return {}


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"), reason="torch is older"
)
def test_of_several_backward_passes_the_last_carries_the_terms():
    (batch,) = batches()
    cfg = config()
    plain, ours = TwoBackward(cfg, "logits"), wrapped(TwoBackward, cfg, "logits")
    ours.forward_backward(batch)
    lc, mi = plain_terms(plain.model, batch, cfg.TRAINER.NPT)
    (0.3 * lc + 0.8 * mi).backward()
    terms = plain.model.prompt_learner.bias.grad.clone()
    plain.forward_backward(batch)
    bias = ours.model.prompt_learner.bias
    torch.testing.assert_close(ours.first, plain.first)
    expected = plain.model.prompt_learner.bias.grad + terms
    torch.testing.assert_close(bias.grad, expected, rtol=1e-4, atol=1e-6)


def test_terms_that_would_be_lost_are_not_lost_in_silence():
    class Detached(Host):
        def loss(self, batch):
            self.model(batch["img"], batch["label"])
            return self.model.prompt_learner.bias.sum()

    class Keeps(Host):
        def forward_backward(self, batch):
            self.loss(batch).backward(retain_graph=True)
            return {}

    with pytest.raises(NPTError, match="did not reach what its model returned, so"):
        wrapped(Detached, config(), "logits").forward_backward(batches()[0])
    if hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"):
        with pytest.raises(NPTError, match="without keeping the graph"):
            wrapped(Keeps, config(), "logits").forward_backward(batches()[0])


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch has it for GPUs alone")
def test_a_scaler_is_found_by_whatever_name():
    class Named(WithScaler):
        def __init__(self, *args):
            super().__init__(*args)
            self.amp_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            self.scaler = None

        def forward_backward(self, batch):
            self.scaler, kept = self.amp_scaler, None
            try:
                return super().forward_backward(batch)
            finally:
                self.scaler = kept

    (batch,) = batches()
    for style in ("loss", "logits"):
        plain = wrapped(Host, config(), style)
        ours = wrapped(Named, config(), style)
        plain.forward_backward(batch)
        ours.forward_backward(batch)
        for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_scalar_that_is_not_the_loss_is_told():
    """A learned scale that comes before the logits, say, or a loss that the trainer never uses."""

    class Scaled(Host):
        def loss(self, batch):
            scale, logits = self.model(batch["img"])
            return F.cross_entropy(scale * logits, batch["label"])

    (batch,) = batches()
    trainer = wrapped(Scaled, config(), "logits")
    model, forward = trainer.model, trainer.model.forward
    model.scale = nn.Parameter(torch.tensor(2.0))
    model.forward = lambda image: (model.scale * 1, forward(image))
    with pytest.warns(UserWarning, match="multiplied on its way to the loss") as told:
        trainer.forward_backward(batch)
        trainer.forward_backward(batch)
    assert len(told) == 1
    model.forward = lambda image: (torch.tensor(2.0), forward(image))  # not learned: no loss
    plain = wrapped(Host, config(), "logits")
    plain.model.load_state_dict({k: v for k, v in model.state_dict().items() if k != "scale"})
    plain.forward_backward(batch)
    trainer.forward_backward(batch)

    class Unused(Host):
        def loss(self, batch):
            _, logits = self.model(batch["img"], batch["label"])
            return F.cross_entropy(logits, batch["label"])

    trainer = wrapped(Unused, config(), "logits")
    forward = trainer.model.forward

    def both(image, label):
        logits = forward(image)
        return logits.sum(), logits

    trainer.model.forward = both
    with pytest.raises(NPTError, match="did not reach what its model returned"):
        trainer.forward_backward(batch)


def test_a_second_pass_with_gradients_is_told():
    class Twice(Host):
        def loss(self, batch):
            return super().loss(batch) + super().loss(batch)

    trainer = wrapped(Twice, config())
    with pytest.warns(UserWarning, match="only the first of these passes") as told:
        trainer.forward_backward(batches()[0])
        trainer.forward_backward(batches()[0])
    assert len(told) == 1


def test_logits_may_be_adjusted_in_place():
    class Adjusting(Host):
        def loss(self, batch):
            logits = self.model(batch["img"])
            logits += torch.arange(K)
            return F.cross_entropy(logits, batch["label"])

    assert wrapped(Adjusting, config(), "logits").forward_backward(batches()[0])["loss"] > 0


def test_on_an_older_torch_a_second_way_back_is_refused(monkeypatch):
    name = "_get_current_graph_task_keep_graph"
    if hasattr(torch._C._autograd, name):
        monkeypatch.delattr(torch._C._autograd, name)
    trainer = wrapped(TwoBackward, config(), "logits")
    with pytest.raises(NPTError, match=r"torch 2\.2"):
        trainer.forward_backward(batches()[0])


def test_a_teacher_is_told_from_the_student_in_tests_too():
    class Taught(TwoTowers):
        def forward(self, image, label=None):
            with torch.no_grad():
                self.image_encoder(image + 1)
                self.text_encoder(torch.ones(D))
            self.own = self.text_encoder(self.prompt_learner.bias)
            return self.image_encoder(image) @ self.own.T

    model = Taught("logits")
    with FeatureTap(model) as tap:
        model(torch.ones(3, 6))
        assert tap.take(classes=K).text is model.own
        with torch.no_grad():
            model(torch.ones(3, 6))
        found = tap.take(classes=K)
        assert found.text is model.own
        assert torch.equal(found.image, model.image_encoder(torch.ones(3, 6)))


# ---- several devices, as DataParallel has them


class Devices(FeatureTap):
    """Takes outputs that are marked with a device of their own for such."""

    def _by_device(self, name, outputs):
        found = {}
        for x in outputs:
            found.setdefault(x.device_number, []).append(x)
        return found


def of(device, *shape, fill=None):
    x = torch.randn(shape) if fill is None else fill.clone()
    x.device_number = device
    return x


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("per_image", [True, False])
def test_texts_of_several_devices(split, per_image):
    tap = Devices(TwoTowers())
    shared, texts = torch.randn(K, D), []
    for device, images in enumerate(split):
        tap._heard["image_encoder"].append(of(device, images, D))
        for _ in range(images if per_image else 1):
            texts.append(of(device, K, D, fill=None if per_image else shared))
    tap._heard["text_encoder"] += texts
    tap._texts_per_image = per_image or None
    found = tap.take(classes=K)
    assert found.image.shape == (sum(split), D)
    assert torch.equal(found.text, torch.stack(texts) if per_image else shared)


# ---- checkpoints


class Loading(Host):
    """Loads as hosts do, by names, and lets its model load by itself as well."""

    def __init__(self, cfg):
        super().__init__(cfg)
        learner = nn.Linear(2, 2)
        learner.register_buffer("token_prefix", torch.ones(3, 1))
        self._models = {"model": nn.ModuleDict({"prompt_learner": learner})}

    def load_model(self, directory, epoch=None):
        self._models["model"].load_state_dict(directory)


def test_loading_drops_the_prefix_of_data_parallel_and_keeps_own_class_names():
    trainer = wrapped(Loading, config())
    model = trainer._models["model"]
    state = {f"module.{key}": x.clone() + 1 for key, x in model.state_dict().items()}
    state["module.prompt_learner.token_prefix"] = torch.zeros(7, 1)  # of seven other classes
    kept = dict(state)
    trainer.load_model(state, epoch=3)
    assert torch.equal(model["prompt_learner"].weight, kept["module.prompt_learner.weight"])
    assert torch.equal(model["prompt_learner"].token_prefix, torch.ones(3, 1))
    assert state == kept  # the caller's own is not changed
    own = {key: x + 1 for key, x in model.state_dict().items()}  # averages of weights, as PromptSRC
    model.load_state_dict(own)
    assert torch.equal(model["prompt_learner"].token_prefix, torch.full((3, 1), 2.0))


# ---- registration


def test_the_three_names_are_registered_and_registering_again_is_harmless():
    registry.install()
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


def test_every_trainer_has_an_npt_name_even_if_it_comes_later():
    npt.register("LaterHost")  # and one that is registered before there is such a trainer
    for name in ("LateHost", "LaterHost"):
        assert name not in TRAINER_REGISTRY.registered_names()
        TRAINER_REGISTRY.register(type(name, (Host,), {}))
        assert f"{name}NPT" in TRAINER_REGISTRY.registered_names()
        trainer = TRAINER_REGISTRY.get(f"{name}NPT")(config())
        assert isinstance(trainer, NPTMixin) and type(trainer).__name__ == f"{name}NPT"
    with pytest.raises(KeyError):
        TRAINER_REGISTRY.get("NobodyNPT")


def test_a_registered_adapter_serves_every_way_to_name_the_trainer():
    TRAINER_REGISTRY.register(type("OddHost", (Host,), {}))
    npt.register("OddHost", features=lambda model, batch: (None, torch.eye(K, D)))
    cfg = config()
    cfg.TRAINER.NPT.BASE = "OddHost"
    (batch,) = batches()
    for name in ("OddHostNPT", "NPT"):
        summary = TRAINER_REGISTRY.get(name)(cfg).forward_backward(batch)
        expected = language_collapse_loss(torch.eye(K, D), 1.0, "class")
        assert summary["loss_lc"] == pytest.approx(expected.item())


@pytest.mark.parametrize("base", ["", "NoSuchTrainer", "MaPLeNPT"])
def test_npt_without_a_base_names_those_there_are(base):
    cfg = config()
    cfg.TRAINER.NPT.BASE = base
    with pytest.raises(NPTError, match=r"one of .*MaPLe.*TRAINER\.NPT\.BASE"):
        TRAINER_REGISTRY.get("NPT")(cfg)


def test_ours_are_wrapped_where_a_host_has_none():
    for base in ("CoCoOp", "MaPLe"):
        cls = registry.npt_class(base)
        assert issubclass(cls, TRAINER_REGISTRY.get(base)) and cls.__name__ == f"{base}NPT"
