"""NPT around host trainers of every kind: it adds what autograd of the plain sum gives."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from small_host import (
    B,
    Host,
    K,
    TwoTowers,
    WithOwnTerms,
    WithScaler,
    batches,
    config,
    plain_terms,
    wrapped,
)
from torch import nn
from yacs.config import CfgNode as CN

from npt.errors import NPTError
from npt.losses import language_collapse_loss

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


@pytest.mark.parametrize("style", ["loss", "logits"])
def test_a_step_keeps_no_graph_alive(style):
    """A graph holds the weights of its model, also of a run that has ended in this process."""

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            contexts.append(weakref.ref(ctx))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    contexts: list = []
    trainer = wrapped(Host, config(), style)
    trainer.model.text_encoder.register_forward_hook(lambda m, a, text: Held.apply(text))
    trainer.forward_backward(batches()[0])
    gc.collect()
    assert contexts and all(ref() is None for ref in contexts)


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
    reported = wrapped(Half, config(reduction="sum")).forward_backward(batch)
    exact = wrapped(Host, config(reduction="sum")).forward_backward(batch)
    assert reported["loss_lc"] == exact["loss_lc"]
    assert reported["loss"] == pytest.approx(exact["loss"], rel=2e-3)
    assert reported["loss"] != torch.tensor(reported["loss"]).half().item()


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
        reported = wrapped(Host, config(), style).forward_backward(batch)
        silent = wrapped(Silent, config(), style).forward_backward(batch)
        assert silent == pytest.approx({k: v for k, v in reported.items() if k != "acc"})


def test_no_hooks_stay_behind_even_after_an_error():
    class Failing(Host):
        def loss(self, batch):
            raise RuntimeError("out of luck")

    trainer = wrapped(Failing, config())
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.forward_backward(batches()[0])
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_models_that_cannot_be_wrapped_raise_a_sentence():
    (batch,) = batches()
    trainer = wrapped(Host, config())
    model = trainer.model
    del model.text_encoder
    model.forward = lambda image, label: F.cross_entropy(model.image_encoder(image)[:, :K], label)
    with pytest.raises(NPTError, match="TwoTowers has no module `text_encoder`"):
        trainer.forward_backward(batch)

    class Elsewhere(Host):
        def loss(self, batch):
            return self.model.image_encoder(batch["img"]).square().mean()

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
        trainer.loss = lambda batch, host=trainer: (
            torch.zeros((), requires_grad=True) * (host.model(batch["img"], batch["label"]) is None)
        )
        with pytest.raises(NPTError, match=r"self\.model returned .*return a loss or logits"):
            trainer.forward_backward(batches()[0])


def test_encoders_that_are_bypassed_are_named():
    trainer = wrapped(Host, config())
    encode = trainer.model.text_encoder.forward
    trainer.model.forward = lambda image, label: F.cross_entropy(
        -torch.cdist(trainer.model.image_encoder(image), encode(trainer.model.prompt_learner.bias)),
        label,
    )
    with pytest.raises(NPTError, match="text_encoder was not run"):
        trainer.forward_backward(batches()[0])


def test_the_config_is_checked_again_by_the_trainer():
    trainer = wrapped(Host, config())
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.W1 is -1"):
        trainer.check_cfg(config(w1=-1.0))
    with pytest.raises(NPTError, match=r"no key TRAINER\.NPT\.\w+; set it to"):
        trainer.check_cfg(CN({"TRAINER": {}}))


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


def test_a_scalar_that_is_not_the_loss_is_reported():
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
    with pytest.warns(UserWarning, match="multiplied before the backward pass") as reported:
        trainer.forward_backward(batch)
        trainer.forward_backward(batch)
    assert len(reported) == 1
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


def test_a_second_pass_with_gradients_is_reported():
    class Twice(Host):
        def loss(self, batch):
            return super().loss(batch) + super().loss(batch)

    trainer = wrapped(Twice, config())
    with pytest.warns(UserWarning, match="only the first of these forward passes") as reported:
        trainer.forward_backward(batches()[0])
        trainer.forward_backward(batches()[0])
    assert len(reported) == 1


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
