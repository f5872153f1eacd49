"""One trainer for each way in which trainers of the family differ."""

import os

import clip
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

from .models import CustomCLIP, PromptedViT, PromptLearner, TextEncoder, load_clip_to_cpu


class Base(TrainerX):
    kind = CustomCLIP
    learned = "prompt_learner"  # what has this in its name is trained
    whole = ""  # the name under which the whole model is registered, if it is

    def build_model(self):
        clip_model = load_clip_to_cpu()
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


class ConditionalLearner(PromptLearner):
    def __init__(self, classnames, clip_model, n):
        super().__init__(classnames, clip_model, n)
        self.meta_net = nn.Linear(clip_model.visual.output_dim, self.ctx.shape[-1])

    def forward(self, images):
        return [self.with_context(self.ctx + shift) for shift in self.meta_net(images)]


class Conditional(CustomCLIP):
    def make_learner(self, classnames, clip_model):
        self.prompt_learner = ConditionalLearner(classnames, clip_model, 4)

    def forward(self, image, label=None):
        images = self.images(image)
        logits = []
        for prompts, own in zip(self.prompt_learner(images), images, strict=True):
            texts = F.normalize(self.text_encoder(prompts, self.tokenized_prompts), dim=-1)
            logits.append(self.logits(own, texts))
        logits = torch.stack(logits)
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


class LossReturning(Base):
    def loss(self, image, label):
        return self.model(image, label), {}


@TRAINER_REGISTRY.register()
class CoCoOp(LossReturning):
    kind = Conditional


# ---- deep prompts in both encoders, and a loss in training


class DeepLearner(PromptLearner):
    def __init__(self, classnames, clip_model, depth):
        super().__init__(classnames, clip_model, 4, words="a photo of a")
        width = clip_model.visual.ln_post.weight.shape[0]
        self.proj = nn.Linear(self.ctx.shape[-1], width)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(torch.randn_like(self.ctx) * 0.02) for _ in range(depth - 1)
        )
        self.compound_prompt_projections = nn.ModuleList(
            nn.Linear(self.ctx.shape[-1], width) for _ in range(depth - 1)
        )

    def visual(self):
        maps = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return self.proj(self.ctx), [m(p) for m, p in maps]


class Deep(CustomCLIP):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        self.image_encoder = PromptedViT(self.image_encoder)

    def make_learner(self, classnames, clip_model):
        self.prompt_learner = DeepLearner(classnames, clip_model, self.cfg.TRAINER.MAPLE.DEPTH)

    def forward(self, image, label=None):
        learner = self.prompt_learner
        deep = learner.compound_prompts_text
        texts = self.text_encoder(learner(), self.tokenized_prompts, deep)
        images = self.image_encoder(image.type(self.dtype), *learner.visual())
        logits = self.logits(F.normalize(images, dim=-1), F.normalize(texts, dim=-1))
        return F.cross_entropy(logits, label) if learner.training else logits


@TRAINER_REGISTRY.register()
class MaPLe(LossReturning):
    kind = Deep
    whole = "MultiModalPromptLearner"


# ---- tuples, and losses of the trainer's own


class Guided(CustomCLIP):
    """Logits, and how far the texts are from hand-written ones."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        tokens = torch.cat([clip.tokenize(f"a photo of a {name}.") for name in classnames])
        with torch.no_grad():
            self.written = F.normalize(clip_model.encode_text(tokens), dim=-1)

    def forward(self, image):
        texts = self.texts()
        score = 1 - F.cosine_similarity(texts, self.written).mean()
        return self.logits(self.images(image), texts), score


@TRAINER_REGISTRY.register()
class KgCoOp(Base):
    kind = Guided

    def loss(self, image, label):
        output, score = self.model(image)
        return F.cross_entropy(output, label) + 8.0 * score, {}

    def model_inference(self, input):
        return self.model(input)[0]


class SelfRegulated(CustomCLIP):
    """Deep prompts inside the layers; the loss and what the trainer regularises."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        self.teacher = load_clip_to_cpu().visual
        for layer in self.text_encoder.transformer.resblocks[1:3]:
            layer.VPT_shallow = nn.Parameter(torch.randn_like(self.prompt_learner.ctx) * 0.02)

    def make_learner(self, classnames, clip_model):
        self.prompt_learner = PromptLearner(classnames, clip_model, 4, words="a photo of a")

    def forward(self, image, label=None):
        images, texts = self.images(image), self.texts()
        logits = self.logits(images, texts)
        if not self.prompt_learner.training:
            return logits
        with torch.no_grad():
            frozen = F.normalize(self.teacher(image), dim=-1)
        return F.cross_entropy(logits, label), texts, images, frozen, logits


@TRAINER_REGISTRY.register()
class PromptSRC(Base):
    kind = SelfRegulated
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


class Several(CustomCLIP):
    """Four learned prompts a class; as many as a batch has images."""

    def make_learner(self, classnames, clip_model):
        super().make_learner(classnames, clip_model)
        ctx = self.prompt_learner.ctx
        self.prompt_learner.more = nn.Parameter(torch.randn(4, *ctx.shape) * 0.02)

    def texts(self):
        learner = self.prompt_learner
        each = [
            self.text_encoder(learner.with_context(learner.ctx + x), self.tokenized_prompts)
            for x in learner.more
        ]
        return F.normalize(F.normalize(torch.stack(each), dim=-1).mean(0), dim=-1)


@TRAINER_REGISTRY.register()
class Ensemble(Base):
    kind = Several


# ---- texts encoded elsewhere


class Residual(CustomCLIP):
    """No text encoder: class features of hand-written prompts, moved by what is learned."""

    def __init__(self, cfg, classnames, clip_model):
        nn.Module.__init__(self)
        tokens = torch.cat([clip.tokenize(f"a photo of a {name}.") for name in classnames])
        self.prompt_learner = nn.Module()
        with torch.no_grad():
            texts = F.normalize(clip_model.encode_text(tokens), dim=-1)
        self.prompt_learner.register_buffer("texts", texts)
        self.prompt_learner.moved = nn.Parameter(torch.zeros_like(texts))
        self.image_encoder = clip_model.visual
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def texts(self):
        learner = self.prompt_learner
        return F.normalize(learner.texts + 0.5 * learner.moved, dim=-1)


@TRAINER_REGISTRY.register()
class TaskRes(Base):
    kind = Residual


class Cached(CustomCLIP):
    """Prompts in the image encoder alone: texts are encoded at the first pass and kept."""

    def __init__(self, cfg, classnames, clip_model):
        nn.Module.__init__(self)
        tokens = [clip.tokenize(f"a photo of a {name}.") for name in classnames]
        self.tokens = torch.cat(tokens)
        with torch.no_grad():
            self.embedded = clip_model.token_embedding(self.tokens)
        width = clip_model.visual.ln_post.weight.shape[0]
        self.prompt_learner = nn.Module()
        self.prompt_learner.ctx = nn.Parameter(torch.randn(4, width) * 0.02)
        self.image_encoder = PromptedViT(clip_model.visual)
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype
        self.kept = None

    def images(self, image):
        ctx = self.prompt_learner.ctx
        return F.normalize(self.image_encoder(image.type(self.dtype), ctx, ()), dim=-1)

    def texts(self):
        if self.kept is None:
            with torch.no_grad():
                self.kept = F.normalize(self.text_encoder(self.embedded, self.tokens), dim=-1)
        return self.kept


@TRAINER_REGISTRY.register()
class VPT(Base):
    kind = Cached
