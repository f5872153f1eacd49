"""One trainer for each pattern in which trainers of the CoOp family differ."""

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
    trained = "prompt_learner"  # parameters with one of these words in their names are trained
    whole = ""  # the name under which the whole model is registered; empty: only its prompts are

    def build_model(self):
        clip_model = models.load_clip_to_cpu()
        self.model = self.kind(self.cfg, self.dm.dataset.classnames, clip_model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(x in name for x in self.trained.split()))
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
    """The model returns logits."""


@TRAINER_REGISTRY.register()
class Parallel(Base):
    """The model is in DataParallel, and was registered before."""

    def build_model(self):
        super().build_model()
        self.model = nn.DataParallel(self.model)


class Scaler:
    """Multiplies the loss and divides the gradients, like a GradScaler on a GPU."""

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
    """Logits under autocast; a scaler multiplies the loss."""

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


# ---- text features of each image; the model returns its loss in training


class LossReturning(Base):
    def loss(self, image, label):
        return self.model(image, label), {}


@TRAINER_REGISTRY.register()
class CoCoOp(LossReturning):
    kind = models.Conditional


# ---- deep prompts in both encoders; the model returns its loss in training


@TRAINER_REGISTRY.register()
class MaPLe(LossReturning):
    kind = models.Deep
    whole = "MultiModalPromptLearner"


# ---- tuples; the trainer adds its own losses


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
    trained = "prompt_learner VPT_shallow"
    whole = "VLPromptLearner"

    def loss(self, image, label):
        loss, texts, images, frozen, _ = self.model(image, label)
        return loss + F.l1_loss(images, frozen) + 0.1 * texts.square().mean(), {}


@TRAINER_REGISTRY.register()
class ProGrad(Base):
    """Two backward passes through one forward pass; combines their gradients."""

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


# ---- a loss beside the logits, of two logits, of images and texts


@TRAINER_REGISTRY.register()
class TCP(Base):
    kind = models.Both

    def loss(self, image, label):
        return self.model(image, label)[1], {}


class TwoLosses(nn.Module):
    def forward(self, logits, other, label):
        return 0.6 * F.cross_entropy(logits, label) + 0.4 * F.cross_entropy(other, label)


@TRAINER_REGISTRY.register()
class MMRL(Base):
    kind = models.TwoFeatures

    def loss(self, image, label):
        return TwoLosses()(*self.model(image), label), {}

    def model_inference(self, input):
        return self.model(input)[0]


@TRAINER_REGISTRY.register()
class DePT(LossReturning):
    kind = models.Probed


# ---- several prompts per class


@TRAINER_REGISTRY.register()
class Ensemble(Base):
    kind = models.Several


# ---- text features from elsewhere, or from an earlier pass


@TRAINER_REGISTRY.register()
class TaskRes(Base):
    kind = models.Residual


@TRAINER_REGISTRY.register()
class VPT(Base):
    kind = models.Cached
