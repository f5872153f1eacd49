"""The remedies against plain references, and inside trainers of every kind."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_host import Host, K, WithOwnTerms, WithScaler, batches, config, wrapped
from torch import nn
from yacs.config import CfgNode as CN

from npt.errors import NPTError
from npt.remedies import (
    Remedies,
    balanced_weights,
    columns,
    drawn_counts,
    effective_weights,
    log_priors,
)

COUNTS = [8, 4, 2, 1, 1]
ON = {
    "LOGIT_ADJUST": {"LOGIT_ADJUST": 1.5},
    "balanced": {"CLASS_WEIGHT": "balanced"},
    "effective": {"CLASS_WEIGHT": "effective", "EFFECTIVE_BETA": 0.9},
    "focal": {"FOCAL_GAMMA": 2.0},
    "all": {"LOGIT_ADJUST": 0.5, "CLASS_WEIGHT": "balanced", "FOCAL_GAMMA": 1.0},
}
counts = st.lists(st.integers(1, 50), min_size=2, max_size=8)


def plain_loss(logits, labels, node, n=COUNTS):
    """The mean over images, written out in numpy, float64."""
    n = np.asarray(n, dtype=float)
    s = np.asarray(logits, dtype=float) + node.get("LOGIT_ADJUST", 0.0) * np.log(n / n.sum())
    p = np.exp(s - s.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[np.arange(len(labels)), labels]
    kind = node.get("CLASS_WEIGHT", "none")
    w = np.ones(len(n))
    if kind == "balanced":
        w = n.sum() / (len(n) * n)
    if kind == "effective":
        beta = node["EFFECTIVE_BETA"]
        w = (1 - beta) / (1 - beta**n)
        w = w / ((n * w).sum() / n.sum())
    return (w[labels] * (1 - p) ** node.get("FOCAL_GAMMA", 0.0) * -np.log(p)).mean()


@pytest.mark.parametrize("on", ON)
def test_the_loss_is_that_of_a_plain_reference(on):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(16, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (16,), generator=generator)
    remedies = Remedies(CN(ON[on]), COUNTS)
    assert remedies
    value = remedies.loss(F.cross_entropy, logits, labels)
    assert value.item() == pytest.approx(plain_loss(logits.numpy(), labels.numpy(), ON[on]))
    each = remedies.loss(F.cross_entropy, logits, labels, reduction="none")
    assert each.mean().item() == pytest.approx(value.item())
    total = remedies.loss(F.cross_entropy, logits, labels, reduction="sum")
    assert total.item() == pytest.approx(16 * value.item())


@given(counts, st.floats(0, 0.999))
@settings(max_examples=50, deadline=None)
def test_weights_have_mean_one_over_the_images(n, beta):
    for weights in (balanced_weights(n), effective_weights(n, beta)):
        assert sum(map(math.prod, zip(n, weights, strict=True))) / sum(n) == pytest.approx(1)
        ranked = [w for _, w in sorted(zip(n, weights, strict=True))]
        assert ranked == sorted(ranked, reverse=True)  # more images, less weight


@given(counts)
@settings(max_examples=50, deadline=None)
def test_effective_weights_lie_between_equal_and_inverse_counts(n):
    assert effective_weights(n, 0.0) == [1.0] * len(n)
    assert effective_weights(n, 1 - 1e-9) == pytest.approx(balanced_weights(n), rel=1e-5)


@pytest.mark.parametrize("on", ["LOGIT_ADJUST", "balanced", "effective"])
@pytest.mark.parametrize("n", [1, 3, 7, 16])
def test_equal_counts_change_nothing(on, n):
    assert not Remedies(CN(ON[on]), [n] * 7)


def test_a_class_without_images_counts_as_one_with_a_single_image():
    assert log_priors([8, 0, 1]) == log_priors([8, 1, 1])
    assert balanced_weights([8, 0, 2])[1] == pytest.approx(2 * balanced_weights([8, 0, 2])[2])
    weights = balanced_weights([8, 0, 2])
    assert 8 * weights[0] + 2 * weights[2] == pytest.approx(10)  # the mean over the images is 1


def test_the_classes_that_adjustment_lowers_are_the_frequent_ones_after_training():
    """With logits that are all equal, the gradient favours rare classes."""
    logits = torch.zeros(5, K, requires_grad=True)
    Remedies(CN(ON["LOGIT_ADJUST"]), COUNTS).loss(
        F.cross_entropy, logits, torch.arange(5)
    ).backward()
    assert logits.grad.sum(0).argmax() == 0  # descent lowers the logit of the largest class most


# --------------------------------------------------------------------------- counts as drawn
def loader(**train_x):
    return CN({"DATALOADER": {"TRAIN_X": train_x}, "TRAINER": {"NPT": ON["LOGIT_ADJUST"]}})


def test_what_a_sampler_balances_is_not_corrected_again():
    for power, expected in ((0.0, [8, 2, 2]), (1.0, [4, 4, 4])):
        cfg = loader(SAMPLER="ClassBalancedSampler", BALANCE_POWER=power)
        assert drawn_counts([8, 2, 2], cfg) == pytest.approx(expected)
        both = CN({"LOGIT_ADJUST": 1.0, "CLASS_WEIGHT": "balanced"})
        assert bool(Remedies(both, drawn_counts([8, 2, 2], cfg))) == (power == 0)
    half = drawn_counts([8, 2, 2], loader(SAMPLER="ClassBalancedSampler", BALANCE_POWER=0.5))
    assert half == pytest.approx([6, 3, 3])
    assert drawn_counts([8, 2, 2], loader(SAMPLER="RandomSampler", BALANCE_POWER=1.0)) == [8, 2, 2]


def test_columns_for_the_eye():
    cfg = loader(SAMPLER="RandomSampler")
    assert columns([4, 1], cfg) == {"logit adjustment": pytest.approx([0, 1.5 * math.log(0.25)])}
    cfg.TRAINER.NPT.CLASS_WEIGHT = "balanced"
    assert list(columns([4, 1], cfg)) == ["logit adjustment", "class weight"]
    cfg.DATALOADER.TRAIN_X.SAMPLER = "ClassBalancedSampler"
    assert columns([4, 1], cfg)["drawn per epoch"] == pytest.approx([2.5, 2.5])


# --------------------------------------------------------------------------- in trainers
class WithData:
    """Hosts with a data manager, whose training images have COUNTS."""

    num_classes = K
    dm = SimpleNamespace(
        dataset=SimpleNamespace(
            train_x=[SimpleNamespace(label=k) for k, n in enumerate(COUNTS) for _ in range(n)]
        )
    )


def on_host(base, on, *args, w1=0.0, w2=0.0):
    cfg = config(w1, w2)
    cfg.TRAINER.NPT.update(ON[on])
    return wrapped(type(base.__name__, (WithData, base), {}), cfg, *args)


def step_by_hand(base, style, node, batch):
    """The plain trainer with torch's cross_entropy written out with the remedies."""
    host = base(config(0.0, 0.0), style)
    original = F.cross_entropy
    n = torch.tensor(COUNTS, dtype=torch.float32)

    def by_hand(logits, target):
        log_p = F.log_softmax(
            logits + node.get("LOGIT_ADJUST", 0.0) * torch.log(n / n.sum()), dim=-1
        )[torch.arange(len(target)), target]
        w = torch.tensor(
            {
                "none": [1.0] * K,
                "balanced": balanced_weights(COUNTS),
                "effective": effective_weights(COUNTS, 0.9),
            }[node.get("CLASS_WEIGHT", "none")]
        )
        return (w[target] * (1 - log_p.exp()) ** node.get("FOCAL_GAMMA", 0.0) * -log_p).mean()

    F.cross_entropy = by_hand
    try:
        return host, host.forward_backward(batch)
    finally:
        F.cross_entropy = original


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("style", ["loss", "logits", "loss per image", "named loss tuple"])
@pytest.mark.parametrize("base", [Host, WithOwnTerms, WithScaler])
def test_a_host_minimises_its_loss_with_the_remedies(base, style, on):
    (batch,) = batches()
    reference, expected = step_by_hand(base, style, ON[on], batch)
    trainer = on_host(base, on, style)
    original = F.cross_entropy
    summary = trainer.forward_backward(batch)
    assert F.cross_entropy is original
    assert summary["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for p, q in zip(trainer.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("style", ["loss", "logits"])
def test_terms_and_remedies_add_up(style):
    (batch,) = batches()
    both = on_host(Host, "LOGIT_ADJUST", style, w1=0.3, w2=0.8).forward_backward(batch)
    alone = on_host(Host, "LOGIT_ADJUST", style).forward_backward(batch)
    assert both["loss_clip"] == pytest.approx(alone["loss"], rel=1e-5)
    added = 0.3 * both["loss_lc"] + 0.8 * both["loss_mi"]
    assert both["loss"] == pytest.approx(alone["loss"] + added, rel=1e-5)


def test_a_host_that_reports_no_loss_gets_the_one_that_is_minimised():
    class Silent(Host):
        def forward_backward(self, batch):
            super().forward_backward(batch)

    (batch,) = batches()
    reported = on_host(Host, "all", "logits").forward_backward(batch)
    silent = on_host(Silent, "all", "logits").forward_backward(batch)
    assert silent["loss"] == pytest.approx(reported["loss"], rel=1e-5)
    assert silent["loss_clip"] == pytest.approx(reported["loss"], rel=1e-5)


def test_labels_smoothing_and_views_of_the_host_are_kept():
    class TwoViews(Host):
        """Each image twice; torch's own module computes the loss."""

        def loss(self, batch):
            out = self.model(torch.cat([batch["img"], batch["img"]]))
            criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
            return criterion(out, torch.cat([batch["label"], batch["label"]]))

    (batch,) = batches()
    trainer = on_host(TwoViews, "LOGIT_ADJUST", "logits")
    with torch.no_grad():
        logits = trainer.model(batch["img"])
    prior = torch.tensor(COUNTS).float().log()
    expected = F.cross_entropy(logits + 1.5 * prior, batch["label"], label_smoothing=0.1)
    # The terms need one feature per label: only the remedy is looked at.
    with trainer.remedied(batch) as seen:
        loss = TwoViews.loss(trainer, batch)
    assert seen.changed == 1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_other_calls_of_cross_entropy_are_left_alone():
    class Teacher(Host):
        def loss(self, batch):
            with torch.no_grad():  # a plain loss for the log
                logits = self.model(batch["img"])
                self.plain = F.cross_entropy(logits, batch["label"])
            held = self.model(batch["img"])
            with torch.no_grad():
                assert F.cross_entropy(held, batch["label"]) == self.plain
            order = F.cross_entropy(10 * self.model.text_encoder(0.0)[:, :K], torch.arange(K))
            return super().loss(batch) + 0.0 * order

    (batch,) = batches()
    trainer = on_host(Teacher, "LOGIT_ADJUST", "logits")
    with torch.no_grad():
        expected = F.cross_entropy(trainer.model(batch["img"]), batch["label"])
    trainer.forward_backward(batch)
    assert torch.equal(trainer.plain, expected)
    with trainer.remedied(batch) as seen:
        Teacher.loss(trainer, batch)
    assert seen.changed == 1


class WithoutCrossEntropy(Host):
    def loss(self, batch):
        return F.nll_loss(torch.log_softmax(self.model(batch["img"]), -1), batch["label"])


class Discarding(Host):
    def loss(self, batch):
        F.cross_entropy(self.model(batch["img"]), batch["label"])  # for the log only
        return self.model(batch["img"]).square().mean()


class Weighting(Host):
    def loss(self, batch):
        return F.cross_entropy(self.model(batch["img"]), batch["label"], weight=torch.ones(K))


class Ignoring(Host):
    def loss(self, batch):
        return F.cross_entropy(self.model(batch["img"]), batch["label"], ignore_index=0)


class MoreClasses(Host):
    def loss(self, batch):
        logits = self.model(batch["img"])
        return F.cross_entropy(torch.cat([logits, logits[:, :1]], 1), batch["label"])


class MoreTexts(Host):
    """Its model has texts of classes that are not trained."""

    def __init__(self, *args):
        super().__init__(*args)
        table = self.model.text_encoder.table
        self.model.text_encoder.table = torch.nn.Parameter(torch.cat([table, table[:2] + 1]).data)


class Mixing(Host):
    def loss(self, batch):
        soft = F.one_hot(batch["label"], K).float()
        return F.cross_entropy(self.model(batch["img"]), 0.9 * soft + 0.1 / K)


@pytest.mark.parametrize(
    "base, on, words",
    [
        (WithoutCrossEntropy, "LOGIT_ADJUST", "does not call torch's cross_entropy"),
        (Mixing, "balanced", "does not call torch's cross_entropy"),
        (Discarding, "focal", "does not reach"),
        (Weighting, "balanced", "has weights"),
        (MoreClasses, "LOGIT_ADJUST", f"logits of the {K} classes"),
        (MoreTexts, "LOGIT_ADJUST", f"logits of the {K} classes"),
        (Ignoring, "focal", "an ignored label"),
    ],
)
def test_where_a_remedy_does_not_fit_there_is_an_error_and_never_another_loss(base, on, words):
    (batch,) = batches()
    with pytest.raises(NPTError, match=words) as caught:
        on_host(base, on, "logits").forward_backward(batch)
    assert "TRAINER.NPT." in str(caught.value)


@pytest.mark.parametrize("on, warned", [("balanced", True), ("focal", False)])
def test_a_sampler_with_chances_of_its_own_is_warned_of(on, warned, recwarn):
    trainer = on_host(Host, on)
    trainer.cfg.DATALOADER = CN({"TRAIN_X": {"SAMPLER": "RandomClassSampler"}})
    trainer.forward_backward(batches()[0])
    found = [str(w.message) for w in recwarn if "RandomClassSampler" in str(w.message)]
    assert len(found) == warned


def test_with_all_remedies_off_nothing_is_replaced():
    trainer = wrapped(Host, config(0.0, 0.0))
    with trainer.remedied(batches()[0]) as seen:
        assert seen is None


# --------------------------------------------------------------------------- our own trainers
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "MaPLe"])
def test_plain_trainers_of_ours_have_them(method):
    from trainer_kit import build
    from trainer_kit import config as full_config

    def losses(*pairs):
        torch.manual_seed(3)
        trainer = build(full_config(method, "tiny", *pairs), ["a", "b", "c"])
        trainer.num_batches, trainer.batch_idx = 2, 0
        trainer.set_model_mode("train")
        (batch, _) = list(trainer.train_loader_x)
        trainer.model.prompt_learner.eval()
        with torch.no_grad():
            logits = trainer.model(batch["img"])
        trainer.model.prompt_learner.train()
        return trainer, logits, batch, trainer.forward_backward(batch)["loss"]

    trainer, logits, batch, loss = losses("TRAINER.NPT.LOGIT_ADJUST", "1.0")
    n = torch.tensor(trainer.count_training_images())
    assert len(set(n.tolist())) > 1
    expected = F.cross_entropy(logits + n.clamp_min(1).log(), batch["label"])
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert loss != pytest.approx(losses()[3], rel=1e-4)
