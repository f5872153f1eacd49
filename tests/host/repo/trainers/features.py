"""Trainers whose encoders' outputs are not what classifies, and whose steps and tests differ.

Every model keeps the features that it classifies with in `used`, for the tests.
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from . import models
from .methods import Base, LossReturning


class Used(models.CustomCLIP):
    def logits(self, images, texts):
        self.used = images, texts
        return super().logits(images, texts)


class Auxiliary(Used):
    """A second pass of the text encoder, with gradient, for a loss among texts; as in LASP."""

    def forward(self, image, label=None):
        logits = self.logits(self.images(image), self.texts())
        if not self.prompt_learner.training:
            return logits
        prompts = self.prompt_learner.with_context(self.prompt_learner.ctx.flip(0))
        others = F.normalize(self.text_encoder(prompts, self.tokenized_prompts), dim=-1)
        among = F.cross_entropy(10 * others @ others.t(), torch.arange(len(others)))
        return F.cross_entropy(logits, label) + among


@TRAINER_REGISTRY.register()
class TextToText(LossReturning):
    kind = Auxiliary


class Layered(Used):
    """A trained layer behind each encoder; as in CoPrompt. They start as the identity."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        dim = clip_model.visual.output_dim
        self.prompt_learner.of_images, self.prompt_learner.of_texts = (
            nn.Linear(dim, dim, bias=False) for _ in range(2)
        )
        for layer in (self.prompt_learner.of_images, self.prompt_learner.of_texts):
            nn.init.zeros_(layer.weight)

    def images(self, image):
        z = self.image_encoder(image.type(self.dtype))
        return F.normalize(z + self.prompt_learner.of_images(z), dim=-1)

    def texts(self):
        g = self.text_encoder(self.prompt_learner(), self.tokenized_prompts)
        return F.normalize(g + self.prompt_learner.of_texts(g), dim=-1)

    def forward(self, image, label=None):
        logits = self.logits(self.images(image), self.texts())
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


@TRAINER_REGISTRY.register()
class Adapters(LossReturning):
    kind = Layered


class Fused(Used):
    """Two features of each image; tests classify with a mixture of both logits, as in MMRL."""

    def forward(self, image):
        images, texts = self.images(image), self.texts()
        other = F.normalize(images + 0.3 * images.roll(1, dims=-1), dim=-1)
        of_other = super().logits(other, texts)
        logits = self.logits(images, texts)
        return logits, of_other, 0.7 * logits + 0.3 * of_other


@TRAINER_REGISTRY.register()
class TwoImages(Base):
    kind = Fused

    def loss(self, image, label):
        logits, other, _ = self.model(image)
        return 0.7 * F.cross_entropy(logits, label) + 0.3 * F.cross_entropy(other, label), {}

    def model_inference(self, input):
        return self.model(input)[2]


class Student(nn.Module):
    """Features of images and a scale; the class texts are elsewhere. As in PromptKD."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        dim = clip_model.visual.output_dim
        self.image_encoder = clip_model.visual
        self.prompt_learner = nn.Linear(dim, dim)
        self.logit_scale = clip_model.logit_scale

    def forward(self, image, label=None):
        images = F.normalize(self.prompt_learner(self.image_encoder(image)), dim=-1)
        return images, self.logit_scale.exp()


@TRAINER_REGISTRY.register()
class Distilled(Base):
    """Minimises the divergence from a teacher, whose texts classify. Its test is its own."""

    kind = Student

    def build_model(self):
        super().build_model()
        self.model_teacher = models.CustomCLIP(
            self.cfg, self.dm.dataset.classnames, models.load_clip_to_cpu()
        ).eval()

    def output(self, image):
        images, scale = self.model(image)
        with torch.no_grad():
            texts = self.model_teacher.texts()
        self.model.used = images, texts
        return scale * images @ texts.t()

    def loss(self, image, label):
        with torch.no_grad():
            wanted = F.softmax(self.model_teacher(image) / 2, dim=1)
        found = F.log_softmax(self.output(image) / 2, dim=1)
        return F.kl_div(found, wanted, reduction="sum") / found.numel(), {}

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.output(image), label)
        return next(iter(self.evaluator.evaluate().values()))


class Halves(Used):
    """Returns features of texts and images; the trainer changes the texts. As in TextRefiner."""

    def forward(self, image):
        return self.texts(), self.images(image), self.logit_scale.exp(), []


@TRAINER_REGISTRY.register()
class Refined(Base):
    kind = Halves

    def output(self, image):
        texts, images, scale, _ = self.model(image)
        near = F.softmax(10 * texts @ texts.t(), dim=-1) @ texts
        self.model.used = images, F.normalize(texts + 0.5 * near, dim=-1)
        return scale * images @ self.model.used[1].t()

    def loss(self, image, label):
        return F.cross_entropy(self.output(image), label), {}

    def model_inference(self, input):
        return self.output(input)


class Prototypes(Used, models.Residual):
    """No text encoder."""


@TRAINER_REGISTRY.register()
class Offsets(Base):
    """Trains class features; as in TaskRes."""

    kind = Prototypes


@TRAINER_REGISTRY.register()
class FromFeatures(Base):
    """Steps on features that were computed before, with no dict; as in CLAP."""

    kind = Prototypes

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for batch in self.train_loader_x:
            with torch.no_grad():
                features = self.model.images(batch["img"]).numpy()
            self.forward_backward(features, batch["label"])
        self.update_lr()

    def forward_backward(self, features, labels):
        output = self.model.logits(torch.tensor(features), self.model.texts())
        loss = F.cross_entropy(output, labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


class Nearest(models.Residual):
    """Classifies by distances, and has no text encoder."""

    def logits(self, images, texts):
        return -10 * torch.cdist(images, texts)


@TRAINER_REGISTRY.register()
class Distances(Base):
    kind = Nearest


@TRAINER_REGISTRY.register()
class Exits(Base):
    """Its test takes more arguments, and the last one ends the process; as in ATPrompt."""

    def test(self, is_final=False, split=None, **more):
        value = super().test(split=split)
        if is_final:
            print("the last line", more)
            sys.stdout.flush()
            os._exit(0)
        return value

    def after_train(self):
        self.test(True, note="more")
