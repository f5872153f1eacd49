"""One trainer for each way in which trainers of the family differ."""

import os

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

from . import models


class Base(TrainerX):
    kind = models.CustomCLIP
    learned = "prompt_learner"  # what has this in its name is trained
    whole = ""  # the name under which the whole model is registered, if it is

    def build_model(self):
        clip_model = models.load_clip_to_cpu()
        self.model = self.kind(self.cfg, self.dm.dataset.classnames, clip_model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(x in name for x in self.learned.split()))
        self.model.to(self.device)
        part = self.model if self.whole else self.model.prompt_learner
        self.optim = build_optimizer(part, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(self.whole or "prompt_learner", part, self.optim, self.sched)
        self.scaler = None

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def loss(self, image, label):
        output = self.model(image)
        return F.cross_entropy(output, label), {"acc": compute_accuracy(output, label)[0].item()}

    def forward_backward(self, batch):
        loss, more = self.loss(*self.parse_batch_train(batch))
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), **more}

    def load_model(self, directory, epoch=None):
        if not directory:
            return
        for name in self.get_model_names():
            file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            state = load_checkpoint(os.path.join(directory, name, file))["state_dict"]
            for key in list(state):
                if key.endswith(("token_prefix", "token_suffix")):
                    del state[key]
            self._models[name].load_state_dict(state, strict=False)


@TRAINER_REGISTRY.register()
class CoOp(Base):
    """Logits."""


@TRAINER_REGISTRY.register()
class Parallel(Base):
    """A model inside DataParallel, registered before it was put there."""

    def build_model(self):
        super().build_model()
        self.model = nn.DataParallel(self.model)


class Scaler:
    """Multiplies the loss and divides the gradients, as a GradScaler on a GPU."""

    def scale(self, x):
        return x * 1024.0

    def step(self, optim):
        for group in optim.param_groups:
            for p in group["params"]:
                p.grad /= 1024.0
        optim.step()

    def update(self):
        pass


@TRAINER_REGISTRY.register()
class Amp(Base):
    """Logits under autocast, the loss multiplied by a scaler."""

    def build_model(self):
        super().build_model()
        self.scaler = Scaler()

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.model(image)
            loss = F.cross_entropy(output, label)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


# ---- texts of each image's own, and a loss in training


class LossReturning(Base):
    def loss(self, image, label):
        return self.model(image, label), {}


@TRAINER_REGISTRY.register()
class CoCoOp(LossReturning):
    kind = models.Conditional


# ---- deep prompts in both encoders, and a loss in training


@TRAINER_REGISTRY.register()
class MaPLe(LossReturning):
    kind = models.Deep
    whole = "MultiModalPromptLearner"


# ---- tuples, and losses of the trainer's own


@TRAINER_REGISTRY.register()
class KgCoOp(Base):
    kind = models.Guided

    def loss(self, image, label):
        output, score = self.model(image)
        return F.cross_entropy(output, label) + 8.0 * score, {}

    def model_inference(self, input):
        return self.model(input)[0]


@TRAINER_REGISTRY.register()
class PromptSRC(Base):
    kind = models.SelfRegulated
    learned = "prompt_learner VPT_shallow"
    whole = "VLPromptLearner"

    def loss(self, image, label):
        loss, texts, images, frozen, _ = self.model(image, label)
        return loss + F.l1_loss(images, frozen) + 0.1 * texts.square().mean(), {}


@TRAINER_REGISTRY.register()
class ProGrad(Base):
    """Goes back twice through one pass, and lets the two gradients decide."""

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        general = output.square().mean() * 1e-4
        self.model_zero_grad()
        general.backward(retain_graph=True)
        parameters = list(self.model.prompt_learner.parameters())
        before = [p.grad.clone() for p in parameters]
        self.model_zero_grad()
        loss = F.cross_entropy(output, label)
        loss.backward()
        for p, g in zip(parameters, before, strict=True):
            g = g / (g.norm() + 1e-12)
            p.grad -= min((p.grad * g).sum(), 0) * g
        self.model_update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


# ---- several prompts a class


@TRAINER_REGISTRY.register()
class Ensemble(Base):
    kind = models.Several


# ---- texts encoded elsewhere


@TRAINER_REGISTRY.register()
class TaskRes(Base):
    kind = models.Residual


@TRAINER_REGISTRY.register()
class VPT(Base):
    kind = models.Cached
