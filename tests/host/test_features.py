"""Which outputs of a forward pass FeatureTap returns as image and text features."""

import pytest
import torch
import torch.nn.functional as F
from small_host import B, D, Host, K, TwoTowers, batches, config, wrapped
from torch import nn

import npt
from npt.errors import NPTError
from npt.host.features import FeatureTap
from npt.host.outputs import EncoderOutputs
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss
from npt.trainer import NPTMixin


def run(model, calls):
    with FeatureTap(model) as tap:
        calls(model)
        return tap.take()


@pytest.mark.parametrize("style", ["logits", "per image"])
def test_the_example_in_the_documentation(style):
    """Text features shared by all images as in CoOp, or of each image as in CoCoOp."""
    model = TwoTowers(style)
    calls = []
    for encoder in (model.image_encoder, model.text_encoder):
        encoder.register_forward_hook(lambda *call: calls.append((call[0], tuple(call[2].shape))))
    with FeatureTap(model) as tap:
        model(torch.ones(2, 6))
        text_calls = 1 if style == "logits" else 2
        assert calls == [
            (model.image_encoder, (2, D)),
            *[(model.text_encoder, (K, D))] * text_calls,
        ]
        image, text = tap.take()
    assert image.shape == (2, D)
    assert text.shape == ((K, D) if style == "logits" else (2, K, D))


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


def test_unclear_calls_raise_an_error():
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


# ---- several prompts per class, cached text features, adapters


class Prompts(TwoTowers):
    """N prompts per class, encoded one by one, all at once, or class by class."""

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
def test_several_prompts_per_class_are_averaged(count, how):
    """Also with as many prompts as images (count = B)."""
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


def test_the_pass_with_one_image_does_not_change_the_random_state():
    trainer = wrapped(Several, config(), B)
    forward = trainer.model.forward
    trainer.model.forward = lambda *args: forward(*args) + torch.rand(())
    torch.manual_seed(3)
    trainer.forward_backward(batches()[0])
    one = torch.rand(())
    torch.manual_seed(3)
    torch.rand(())  # the pass of the step itself
    assert one == torch.rand(())


class Caching(Host):
    """Encodes its texts once, without gradient, like methods with prompts only for images."""

    class Model(TwoTowers):
        cached = None

        def forward(self, image, label=None):
            if self.cached is None:
                with torch.no_grad():
                    self.cached = F.normalize(self.text_encoder(torch.zeros(D)), dim=-1)
            return 10 * F.normalize(self.image_encoder(image), dim=-1) @ self.cached.T

    def __init__(self, cfg):
        super().__init__(cfg)
        self.model.__class__ = self.Model


def test_cached_text_features_are_those_of_an_earlier_pass():
    trainer = wrapped(Caching, config())
    text = trainer.model.text_encoder(torch.zeros(D)).detach()
    for batch in batches(3):
        image = trainer.model.image_encoder(batch["img"])
        mi = multimodal_isomorphism_loss(image, text, batch["label"], 1.0, 2.0, "class")
        summary = trainer.forward_backward(batch)
        assert summary["loss_mi"] == pytest.approx(mi.item(), rel=1e-5)


def test_text_features_with_gradient_are_not_reused():
    trainer = wrapped(Host, config(), "logits")
    trainer.forward_backward(batches()[0])
    trainer.model.forward = lambda image, label: trainer.model.image_encoder(image)[:, :K]
    with pytest.raises(NPTError, match="text_encoder was not run"):
        trainer.forward_backward(batches()[0])


def adapted(features):
    return type("HostNPT", (NPTMixin, Host), {"features_adapter": staticmethod(features)})(config())


def test_an_adapter_s_features_are_used_and_none_means_the_encoder_s_output():
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
    "returned, message",
    [
        (torch.zeros(2), r"returned a Tensor; it must return npt\.Features"),
        (npt.Features(torch.zeros(B), None), r"shapes \(4,\), None"),
        (npt.Features(torch.zeros(B, D), torch.zeros(2, K, D)), r"\(4, 8\), \(2, 5, 8\)"),
        (npt.Features(torch.zeros(2, D), torch.zeros(K, D)), "2 images were encoded for a batch"),
    ],
)
def test_wrong_results_of_an_adapter_raise_an_error(returned, message):
    with pytest.raises(NPTError, match=message):
        adapted(lambda model, batch: returned).forward_backward(batches()[0])


def test_a_teacher_is_not_mistaken_for_the_student_without_gradients():
    class WithTeacher(TwoTowers):
        def forward(self, image, label=None):
            with torch.no_grad():
                self.image_encoder(image + 1)
                self.text_encoder(torch.ones(D))
            self.student = self.text_encoder(self.prompt_learner.bias)
            return self.image_encoder(image) @ self.student.T

    model = WithTeacher("logits")
    with FeatureTap(model) as tap:
        model(torch.ones(3, 6))
        assert tap.take(classes=K).text is model.student
        with torch.no_grad():
            model(torch.ones(3, 6))
        found = tap.take(classes=K)
        assert found.text is model.student
        assert torch.equal(found.image, model.image_encoder(torch.ones(3, 6)))


# ---- several devices, as with DataParallel


class Devices(EncoderOutputs):
    """Reads the device of an output from its attribute `device_number`."""

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
    outputs = Devices(TwoTowers())
    shared, texts = torch.randn(K, D), []
    for device, images in enumerate(split):
        outputs.recorded["image_encoder"].append(of(device, images, D))
        for _ in range(images if per_image else 1):
            texts.append(of(device, K, D, fill=None if per_image else shared))
    outputs.recorded["text_encoder"] += texts
    outputs.texts_per_image = per_image or None
    found = outputs.features(classes=K)
    assert found.image.shape == (sum(split), D)
    assert torch.equal(found.text, torch.stack(texts) if per_image else shared)
