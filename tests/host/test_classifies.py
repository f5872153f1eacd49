"""The terms and measures are those of the features that a model classifies with."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hosts_kit import Run
from small_host import B, D, Host, K, TwoTowers, batches, config, wrapped
from torch import nn

import npt
from npt.errors import NPTError
from npt.host.adapters import adapted
from npt.host.features import FeatureTap
from npt.host.products import Products
from npt.host.steps import batch_of_step, labels_of_batch
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss
from npt.recorder import Recorder
from npt.terms import Run as RunOfTerms
from npt.trainer import NPTMixin

# --------------------------------------------------------------------------- the host repository
RUNS = Path(__file__).with_name("feature_runs.py")
TRAINERS = [
    *("TextToText", "Adapters", "TwoImages", "Distilled", "Refined", "FromFeatures", "Offsets")
]


@pytest.fixture(scope="module")
def runs(python, host_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    done = python(RUNS, folder, *TRAINERS, HOST_CLIP=host_clip)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_terms_and_measures_are_those_of_the_features_that_classify(runs, trainer):
    run = runs[trainer]
    for found, expected in (("first", "by_hand"), ("last", "last_by_hand")):
        for name, value in run[expected].items():
            assert run[found][name] == pytest.approx(value, rel=1e-4), (found, name)
    for name in ("lcd", "mid"):
        assert run["tested"][name] == pytest.approx(run["tested_by_hand"][name], rel=1e-4)
    assert run["moved"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_such_a_trainer_stays_itself_with_both_weights_zero(runs, trainer):
    assert runs[trainer]["changed"] == []
    for by_host, by_npt in runs[trainer]["crossed"].values():
        assert by_host == by_npt


def test_the_user_sees_what_was_taken(runs):
    for trainer in TRAINERS:
        said = runs[trainer]["said"]
        assert bool(said) == (trainer != "TwoImages"), trainer
        assert all(x.endswith("images (4, 64), texts (8, 64)") for x in said)
        mixed = [x for x in runs[trainer]["warned"] if "In tests, the logits" in x]
        assert bool(mixed) == (trainer == "TwoImages"), trainer


def test_a_test_that_ends_the_process_has_its_figures_in_the_record(host, tmp_path):
    run = Run(host("ExitsNPT", tmp_path), tmp_path)
    assert run.done.returncode == 0, run.done.stderr
    assert "the last line {'note': 'more'}" in run.done.stdout
    assert run.result["finished"] is True
    assert run.result["results"]["test"]["accuracy"] == pytest.approx(run.accuracy, abs=0.05)
    assert run.result["results"]["test"]["lcd"] > 0


# --------------------------------------------------------------------------- products
Z, G = torch.randn(B, D), torch.randn(K, D)
OWN = torch.randn(B, K, D)  # texts of each image
SEVERAL = torch.randn(3, K, D)  # three prompts per class

WAYS = {
    "@": lambda: 10 * Z @ G.t(),
    "texts first": lambda: (G @ Z.t()).t() * 10,
    "matmul": lambda: torch.matmul(Z, G.transpose(0, 1)),
    "mm": lambda: Z.mm(G.t()).mul(3),
    "linear": lambda: F.linear(Z, G),
    "addmm": lambda: torch.addmm(torch.arange(K).float(), Z, G.t()),
    "tensordot": lambda: torch.tensordot(Z, G, dims=([1], [1])),
    "a head": lambda: Head()(Z),
    "inner": lambda: torch.inner(Z, G) / 0.07,
    "einsum": lambda: torch.einsum("bd,kd->bk", Z, G),
    "einsum, texts first": lambda: torch.einsum("kd, bd -> bk", G, Z),
    "einsum, own texts": lambda: torch.einsum("bd,bkd->bk", Z, OWN),
    "einsum, own texts first": lambda: torch.einsum("bkd,bd->bk", OWN, Z),
    "cosine_similarity": lambda: 100 * F.cosine_similarity(Z[:, None], G, dim=-1),
    "CosineSimilarity": lambda: nn.CosineSimilarity(dim=2)(Z[:, None], OWN),
    "bmm": lambda: torch.bmm(Z[:, None], OWN.transpose(1, 2))[:, 0],
    "bmm, texts first": lambda: torch.bmm(OWN, Z[:, :, None]).squeeze(-1),
    "batched": lambda: (Z[:, None] @ G.t()).squeeze(1),
    "sum": lambda: (Z[:, None] * OWN).sum(-1),
    "sum, shared": lambda: (Z[:, None] * G[None]).sum(dim=2),
    "image by image": lambda: torch.stack([z @ g.t() for z, g in zip(Z, OWN, strict=True)]),
    "mv": lambda: torch.stack([5 * (g @ z) for z, g in zip(Z, OWN, strict=True)]),
    "image by image, twice": lambda: torch.stack(
        [(z @ G.flip(0).t(), z @ g.t())[1] for z, g in zip(Z, OWN, strict=True)]
    ),
    "image by image, one after the other": lambda: [
        torch.stack([z @ x.t() for z, x in zip(Z, texts, strict=True)])
        for texts in (OWN.flip(1), OWN)
    ][1],
    "mean of prompts": lambda: (Z @ SEVERAL.transpose(1, 2)).mean(0),
    "the best of several": lambda: [Z.flip(0) @ G.t(), Z @ G.t(), (Z + 0.1) @ G.t()][1],
    "changed in place": lambda: (Z @ G.t()).mul_(2).add_(torch.eye(B, K)),
    "a margin": lambda: 10 * Z @ G.t() - 3 * F.one_hot(LABELS, K),
    "logit adjustment": lambda: Z @ G.t() + torch.arange(K),
    "without the mean of each image": lambda: (Z @ G.t()) - (Z @ G.t()).mean(1, keepdim=True),
}
LABELS = torch.tensor([1, 0, 4, 2])


class Head(nn.Linear):
    def __init__(self):
        super().__init__(D, K, bias=False)
        self.weight.data = G


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_products_are_found_however_they_are_written(way):
    products = Products(K)
    with products:
        torch.nn.Linear(D, K)(Z)  # another product of the same shape
        logits = WAYS[way]()
    _, product = products.giving(logits, LABELS)
    own = "own texts" in way or way in ("CosineSimilarity", "sum", "mv") or "image by" in way
    texts = OWN if own or "bmm" in way else SEVERAL.mean(0) if "prompts" in way else G
    for found, expected in ((product.image, Z), (product.text, texts)):
        torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(expected, dim=-1))


@torch.no_grad()
def test_a_mean_of_several_cosines_is_one_of_their_features_side_by_side():
    """As in RPO: each image and class has several features, whose cosines are averaged."""
    images, texts = torch.randn(3, B, D), torch.randn(3, K, D)
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    products, logits = Products(K), torch.zeros(B, K)
    with products:
        for z, g in zip(images, texts, strict=True):
            logits += 7 * z @ g.t()
        logits /= 3
    place, product = products.giving(logits)
    for found in (product, products.at(place, B)):
        cosines = F.normalize(found.image, dim=-1) @ F.normalize(found.text, dim=-1).t()
        torch.testing.assert_close(7 * cosines, logits)


@torch.no_grad()
def test_a_sum_of_two_products_with_the_same_texts_is_one_of_added_images():
    products = Products(K)
    with products:
        logits = 0.7 * Z @ G.t() + 0.3 * Z.flip(0) @ G.t()
    _, product = products.giving(logits)
    torch.testing.assert_close(product.image, 0.7 * Z + 0.3 * Z.flip(0))
    torch.testing.assert_close(product.text, G)


@pytest.mark.parametrize(
    "logits",
    [
        lambda: Z @ G.t() + 0.5 * (Z.flip(0) @ G.t()),
        lambda: -torch.cdist(Z, G),
        lambda: F.linear(Z, G, torch.ones(K)).exp(),
        lambda: -(Z @ G.t()),
        lambda: torch.randn(B, K),
        lambda: (Z @ torch.cat([G, G]).t())[:, ::2],
    ],
)
@torch.no_grad()
def test_what_is_no_product_is_not_taken_for_one(logits):
    products = Products(K)
    with products:
        assert products.giving(logits(), LABELS) is None


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@torch.no_grad()
def test_products_are_told_apart_in_half_precision(dtype):
    z, g = F.normalize(Z, dim=-1).to(dtype), F.normalize(G, dim=-1).to(dtype)
    near = F.normalize(Z + 0.2 * torch.randn(B, D), dim=-1).to(dtype)
    products = Products(K)
    with products:
        others = 100 * near @ g.t()
        logits = 100 * z @ g.t()
    assert others.shape == logits.shape
    torch.testing.assert_close(products.giving(logits)[1].image, 100 * z)


# --------------------------------------------------------------------------- steps, in float64
class Behind(TwoTowers):
    """Layers behind the encoders, which start as the identity; a second text pass in a loss."""

    def __init__(self, style):
        super().__init__(style)
        self.of_images, self.of_texts = (nn.Linear(D, D, bias=False) for _ in range(2))
        for layer in (self.of_images, self.of_texts):
            nn.init.zeros_(layer.weight)

    def features(self, image):
        z, g = self.image_encoder(image), self.text_encoder(self.prompt_learner.bias)
        return z + self.of_images(z), g + self.of_texts(g)

    def forward(self, image, label=None):
        z, g = self.features(image)
        if self.style == "features":
            return z, g, [self.text_encoder(self.prompt_learner.weight.mean(0))]
        if self.style == "per image":
            logits = torch.stack(
                [F.normalize(z, dim=-1)[i] @ (g * z[i]).t() for i in range(len(z))]
            )
        else:
            logits = 10 * F.normalize(z, dim=-1) @ F.normalize(g, dim=-1).t()
        if self.style == "margin":
            logits = logits - F.one_hot(label, K)
        if self.style == "log_softmax":
            return -F.log_softmax(logits, 1).gather(1, label[:, None]).mean()
        if self.style == "loss":
            others = self.text_encoder(self.prompt_learner.weight.mean(0))
            return F.cross_entropy(logits, label) + others.square().mean()
        return logits


class BehindHost(Host):
    def __init__(self, cfg, style):
        super().__init__(cfg)
        torch.manual_seed(0)
        self.num_classes = K
        self.model = Behind(style).double()
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def loss(self, batch):
        image, label = batch["img"].double(), batch["label"]
        out = self.model(image, label)
        if self.model.style == "features":
            out = 10 * F.normalize(out[0], dim=-1) @ F.normalize(out[1], dim=-1).t()
        return out if out.dim() == 0 else F.cross_entropy(out, label)


STYLES = ["loss", "logits", "margin", "log_softmax", "features", "per image"]


def terms_by_hand(model, batch, node):
    image, text = model.features(batch["img"].double())
    if model.style == "per image":
        text = text * image[:, None]
    lc = language_collapse_loss(text, node.E_W, node.REDUCTION)
    return lc, multimodal_isomorphism_loss(
        image, text, batch["label"], node.E_W, node.E_H, node.REDUCTION
    )


@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_those_of_the_plain_sum(style):
    """Also of layers that change nothing in the first step, and at the place that is kept."""
    cfg = config()
    reference, ours = BehindHost(cfg, style), wrapped(BehindHost, cfg, style)
    for batch in batches(3):
        lc, mi = terms_by_hand(reference.model, batch, cfg.TRAINER.NPT)
        reference.optim.zero_grad()
        (reference.loss(batch) + 0.3 * lc + 0.8 * mi).backward()
        reference.optim.step()
        summary = ours.forward_backward(batch)
        assert summary["loss_lc"] == pytest.approx(lc.item(), rel=1e-6)
        assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-6)
        for a, b in zip(ours.model.parameters(), reference.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_with_both_weights_zero_nothing_changes(style):
    plain, ours = BehindHost(config(), style), wrapped(BehindHost, config(0.0, 0.0), style)
    torch.manual_seed(1)
    for batch in batches(3):
        assert plain.forward_backward(batch)["loss"] == ours.forward_backward(batch)["loss"]
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)
    random = torch.rand(())
    torch.manual_seed(1)
    assert random == torch.rand(())


def test_another_control_flow_is_looked_at_again(capsys):
    class Changing(BehindHost):
        steps = 0

        def loss(self, batch):
            self.steps += 1
            if self.steps % 2:
                return super().loss(batch)
            weight = self.model.of_texts.weight
            more = torch.ones(B, D).double() @ weight @ weight
            return super().loss(batch) + more.sum() * 0

    for trainer in (wrapped(Changing, config(), "loss"), wrapped(Changing, config(), "features")):
        for batch in batches(4):
            lc, _ = terms_by_hand(trainer.model, batch, trainer.cfg.TRAINER.NPT)
            assert trainer.forward_backward(batch)["loss_lc"] == pytest.approx(lc.item(), rel=1e-6)
        assert capsys.readouterr().out.count("NPT reads the features that Behind") == 1


def test_where_the_encoders_classify_only_hooks_remain(monkeypatch, capsys):
    for style in ("loss", "logits", "loss per image", "logits tuple"):
        trainer = wrapped(Host, config(), style)
        trainer.forward_backward(batches()[0])
        monkeypatch.setattr(Products, "__enter__", lambda self: pytest.fail("still looking"))
        trainer.forward_backward(batches()[0])
        monkeypatch.undo()
    assert capsys.readouterr().out == ""


class Distant(Host):
    """Classifies by distances: no product gives its logits."""

    class Model(TwoTowers):
        def forward(self, image, label=None):
            text = self.text_encoder(self.prompt_learner.bias)
            return -torch.cdist(self.image_encoder(image), text)

    def __init__(self, cfg):
        super().__init__(cfg)
        self.model.__class__ = self.Model


def test_features_that_do_not_classify_are_reported_once():
    trainer = wrapped(Distant, config())
    with pytest.warns(UserWarning) as caught:
        for batch in batches(3):
            trainer.forward_backward(batch)
    (message,) = (str(w.message) for w in caught)
    assert "The logits of Model are not a scale times the cosines" in message
    assert "they differ by up to" in message and "write an adapter" in message


def test_a_step_without_logits_that_could_be_found_ends_with_a_sentence():
    class Headless(Host):
        def loss(self, batch):
            return self.model.image_encoder(batch["img"]).square().mean()

    with pytest.raises(NPTError, match="found no cross-entropy or softmax of a product"):
        wrapped(Headless, config()).forward_backward(batches()[0])


# --------------------------------------------------------------------------- adapters
def test_an_adapter_gets_the_trainer_if_it_takes_one():
    image, text = torch.ones(2, 3), torch.ones(4, 3)

    class Kept:
        def method(self, model, batch, trainer):
            return npt.Features(trainer.image, text)

        def __call__(self, model, batch, /, *, trainer=None):
            return npt.Features(trainer.image, text)

    def three(model, batch, of):
        return npt.Features(of.image, text)

    def four(texts, model, batch, trainer):
        return npt.Features(trainer.image, texts)

    def two(model, batch, texts=text, **more):
        assert not more
        return npt.Features(image, texts)

    trainer = SimpleNamespace(image=image)
    for adapter in (
        *(three, two, Kept().method, Kept(), functools.partial(four, text)),
        lambda model, batch, texts=text: npt.Features(image, texts),
        lambda *args: npt.Features(image, args[1]["texts"]),
        functools.partial(two, texts=text),
    ):
        found = adapted(adapter, nn.Linear(1, 1), {"texts": text}, trainer)
        assert torch.equal(found.image, image) and torch.equal(found.text, text)


def test_the_trainer_of_a_step_reaches_the_adapter_and_the_model_may_run_in_it():
    class Taught(Host):
        num_classes = K

        def __init__(self, cfg):
            super().__init__(cfg)
            self.texts = torch.randn(K, D)
            del self.model.text_encoder
            self.model.forward = lambda image, label=None: F.normalize(
                self.model.image_encoder(image), dim=-1
            )

        def loss(self, batch):
            return F.cross_entropy(self.model(batch["img"]) @ self.texts.t(), batch["label"])

    def features(model, batch, trainer):
        return npt.Features(model(batch["img"]), trainer.texts)

    cfg, (batch,) = config(0.0, 0.8), batches()
    cls = type("TaughtNPT", (NPTMixin, Taught), {"features_adapter": staticmethod(features)})
    with_adapter, without = cls(cfg), wrapped(Taught, cfg)
    assert with_adapter.forward_backward(batch) == pytest.approx(without.forward_backward(batch))
    for a, b in zip(with_adapter.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --------------------------------------------------------------------------- steps and tests
LABELLED = torch.tensor([3, 1])


@pytest.mark.parametrize(
    "args, kwargs",
    [
        (({"img": torch.ones(2, 3), "domain": torch.zeros(2, dtype=int), "label": LABELLED},), {}),
        (({"x": torch.ones(2, 3), "targets": LABELLED}, {"img": torch.ones(2, 3)}), {}),
        (({"domain": torch.zeros(2, dtype=int), "class_labels": LABELLED},), {}),
        ((np.ones((2, 3)), LABELLED.numpy()), {}),
        (([torch.ones(2, 3), LABELLED],), {}),
        ((torch.ones(2, 3),), {"y": LABELLED}),
        ((), {"features": torch.ones(2, 3), "labels": LABELLED}),
    ],
)
def test_the_labels_of_a_step_are_found(args, kwargs):
    def step(*args, **kwargs):
        pass

    assert torch.equal(labels_of_batch(batch_of_step(step, args, kwargs), "X"), LABELLED)


@pytest.mark.parametrize("names", ["batch_u, batch_x", "unlabelled, labelled", "a_weak, a"])
def test_the_labels_of_unlabelled_images_are_not_taken(names):
    """Dassl's loader of unlabelled images hands over their labels, too."""
    step = eval(f"lambda {names}: None")
    given = {"label": torch.tensor([0, 0])}, {"label": LABELLED}
    named = dict(zip(names.split(", "), given, strict=True))
    for args, kwargs in ((given, {}), ((), named)):
        assert labels_of_batch(batch_of_step(step, args, kwargs), "X") is LABELLED


def test_a_step_with_two_batches_has_the_terms_of_the_labelled_one():
    class Both(Host):
        def forward_backward(self, batch_u, batch_x):
            return super().forward_backward(batch_x)

    batch, other = batches(2)
    alone = wrapped(Host, config()).forward_backward(batch)
    assert wrapped(Both, config()).forward_backward(other, batch) == pytest.approx(alone)


class Later(BehindHost):
    """Classifies with layers behind the encoders from its second epoch on."""

    epoch = 0

    def __init__(self, cfg):
        super().__init__(cfg, "logits")
        nn.init.normal_(self.model.of_texts.weight)
        whole, encoded = self.model.features, self.model.text_encoder
        self.model.features = lambda image: (
            whole(image)
            if self.epoch
            else (self.model.image_encoder(image), encoded(self.model.prompt_learner.bias))
        )


def test_a_model_that_goes_another_way_in_a_later_epoch(capsys):
    trainer = wrapped(Later, config())
    for trainer.epoch in range(2):
        for batch in batches(2):
            lc, mi = terms_by_hand(trainer.model, batch, trainer.cfg.TRAINER.NPT)
            summary = trainer.forward_backward(batch)
            assert summary["loss_lc"] == pytest.approx(lc.item(), rel=1e-6)
            assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-6)
    assert capsys.readouterr().out.count("NPT reads the features") == 1


@pytest.mark.parametrize("returned", ["nested", "dataclass"])
def test_logits_in_a_structure_are_found_by_the_loss(returned):
    class Wrapping(Host):
        def loss(self, batch):
            out = self.model(batch["img"])
            logits = out["out"]["logits"] if returned == "nested" else out.logits
            return F.cross_entropy(logits, batch["label"])

    def trainer(w1, w2):
        made = wrapped(Wrapping, config(w1, w2), "logits")
        forward = type(made.model).forward

        def structured(image, label=None):
            logits = forward(made.model, image, label)
            nested = {"out": {"logits": logits}}
            return nested if returned == "nested" else SimpleNamespace(logits=logits)

        made.model.forward = structured
        return made

    (batch,) = batches()
    plain = wrapped(Host, config(), "logits").forward_backward(batch)
    assert trainer(0.3, 0.8).forward_backward(batch) == pytest.approx(plain)
    assert trainer(0.0, 0.0).forward_backward(batch)["loss_lc"] == pytest.approx(plain["loss_lc"])


def test_without_weights_a_step_that_npt_cannot_read_is_the_host_s_own():
    """Its batch is cut in parts, for example: no pass has the images of all labels."""

    class Parts(Host):
        def loss(self, batch):
            halves = zip(batch["img"].chunk(2), batch["label"].chunk(2), strict=True)
            return sum(F.cross_entropy(self.model(x), y) for x, y in halves) / 2

    (batch,) = batches()
    plain = Parts(config(), "logits")
    with pytest.raises(NPTError):
        wrapped(Parts, config(), "logits").forward_backward(batch)
    ours = wrapped(Parts, config(0.0, 0.0), "logits")
    with pytest.warns(UserWarning, match="no terms are in its log"):
        summary = ours.forward_backward(batch)
    assert summary["loss"] == plain.forward_backward(batch)["loss"]
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_without_labels_ends_with_a_sentence():
    with pytest.raises(NPTError, match="The step of HostNPT got no labels"):
        wrapped(Host, config()).forward_backward({"img": torch.ones(2, 6)})


def test_what_the_mixin_does_not_know_is_passed_on():
    seen = {}

    def taking(name):
        def method(self, *args, **kwargs):
            seen[name] = args[1:], kwargs
            return name

        return method

    names = ("check_cfg", "build_model", "load_model", "resume_model_if_exist")
    base = type("Taking", (Host,), {name: taking(name) for name in names})
    trainer = wrapped(base, config())
    trainer.cfg.MODEL = type(trainer.cfg)({"ACCELERATE": False})
    trainer.cfg.TRAINER.NPT.W1 = 0.3
    for name in names:
        first = trainer.cfg if name == "check_cfg" else None
        assert getattr(trainer, name)(first, "more", key="word") == name
        assert seen[name] == (("more",), {"key": "word"})


@pytest.mark.parametrize(
    "output, labels, accuracy",
    [
        (lambda x: (x.argmax(1), x), lambda y: y, True),
        (lambda x: x.numpy(), lambda y: y.numpy(), True),
        (lambda x: x.argmax(1), lambda y: y, False),
        (lambda x: {"scores": 1}, lambda y: y, False),
        (lambda x: x, lambda y: F.one_hot(y, K), False),
    ],
)
def test_scores_of_another_kind_do_not_end_a_test(output, labels, accuracy):
    model = TwoTowers("logits")
    recorder = Recorder(FeatureTap(model), RunOfTerms(None))
    for batch in batches(2):
        with torch.no_grad(), recorder.recording():
            recorder.add(output(model(batch["img"])), labels(batch["label"]), batch)
    results = recorder.results()
    assert (results["accuracy"] is not None) == accuracy
    assert (results["lcd"] is not None) == (accuracy or torch.equal(labels(LABELLED), LABELLED))
    assert bool(recorder.no_scores) != accuracy
    assert len(recorder.per_class(list("abcde"))) == (K if accuracy else 0)


def test_a_test_decides_anew_where_the_features_are():
    model = Behind("logits").double()
    tap = FeatureTap(model)
    image, labels = batches()[0]["img"].double(), batches()[0]["label"]
    for _ in range(2):
        recorder = Recorder(tap, RunOfTerms(None))
        with torch.no_grad(), recorder.recording():
            recorder.add(model(image), labels)
            texts = model.features(image)[1]
        expected = F.normalize(texts, dim=-1).float()
        torch.testing.assert_close(recorder.split().text, expected)
        nn.init.normal_(model.of_texts.weight)  # as after a training
