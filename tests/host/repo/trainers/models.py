"""CLIP models as in the CoOp family: each pass encodes all 77 tokens of every class."""

import os

import clip
import torch
from clip.model import build_model
from torch import nn
from torch.nn import functional as F

CLIP_FILE = "HOST_CLIP"  # environment variable with the path of the weights


def load_clip_to_cpu():
    state = torch.load(os.environ[CLIP_FILE], map_location="cpu")
    return build_model(state).float()


class PromptLearner(nn.Module):
    """Context vectors between the start token and the class name."""

    def __init__(self, classnames, clip_model, n, per_class=False, words=None):
        super().__init__()
        width = clip_model.ln_final.weight.shape[0]
        texts = [f"{words or ' '.join(['X'] * n)} {name}." for name in classnames]
        self.tokenized_prompts = torch.cat([clip.tokenize(text) for text in texts])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.tokenized_prompts)
        shape = (len(classnames), n, width) if per_class else (n, width)
        ctx = embedding[0, 1 : 1 + n].clone() if words else torch.randn(shape) * 0.02
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n :])

    def with_context(self, ctx):
        ctx = ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)

    def forward(self):
        return self.with_context(self.ctx)


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokenized_prompts, deep=()):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = x.permute(1, 0, 2)  # (77, K, D), as CLIP's layers need it
        for i, layer in enumerate(self.transformer.resblocks):
            prompt = getattr(layer, "VPT_shallow", None)
            if prompt is not None:
                x = put(x, prompt, 1)
            elif 0 < i <= len(deep):
                x = put(x, deep[i - 1], 1)
            x = layer(x)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        ends = tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), ends] @ self.text_projection


class PromptedViT(nn.Module):
    """CLIP's image encoder with prompts after the patch tokens."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image, ctx, deep):
        visual = self.visual
        x = visual.conv1(image).flatten(2).permute(0, 2, 1)
        cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
        tokens = x.shape[1]
        x = torch.cat([x, ctx.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        x = visual.ln_pre(x).permute(1, 0, 2)
        for i, layer in enumerate(visual.transformer.resblocks):
            if 0 < i <= len(deep):
                x = put(x, deep[i - 1], tokens)
            x = layer(x)
        return visual.ln_post(x[0]) @ visual.proj


def put(x, prompt, first):
    """x (L, B, D), where prompt (n, D) replaces the rows first to first + n - 1."""
    prompt = prompt.to(x.dtype).unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat([x[:first], prompt, x[first + len(prompt) :]])


class CustomCLIP(nn.Module):
    """Logits of images; subclasses override what differs."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.cfg = cfg
        self.make_learner(classnames, clip_model)
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def make_learner(self, classnames, clip_model):
        node = self.cfg.TRAINER.HOST
        self.prompt_learner = PromptLearner(classnames, clip_model, node.N_CTX, node.CSC)

    def images(self, image):
        return F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)

    def texts(self):
        return F.normalize(self.text_encoder(self.prompt_learner(), self.tokenized_prompts), dim=-1)

    def logits(self, images, texts):
        return self.logit_scale.exp() * images @ texts.t()

    def forward(self, image):
        return self.logits(self.images(image), self.texts())


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
        for prompts, z in zip(self.prompt_learner(images), images, strict=True):
            texts = F.normalize(self.text_encoder(prompts, self.tokenized_prompts), dim=-1)
            logits.append(self.logits(z, texts))
        logits = torch.stack(logits)
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


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


class Guided(CustomCLIP):
    """Logits, and the distance of the text features from those of hand-written prompts."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        tokens = torch.cat([clip.tokenize(f"a photo of a {name}.") for name in classnames])
        with torch.no_grad():
            self.written = F.normalize(clip_model.encode_text(tokens), dim=-1)

    def forward(self, image):
        texts = self.texts()
        score = 1 - F.cosine_similarity(texts, self.written).mean()
        return self.logits(self.images(image), texts), score


class SelfRegulated(CustomCLIP):
    """Deep prompts inside the layers; returns the loss and what the trainer regularises."""

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


class Several(CustomCLIP):
    """Four learned prompts per class, as many as there are images in a batch."""

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


class Residual(CustomCLIP):
    """No text encoder: features of hand-written prompts plus a learned residual."""

    def __init__(self, cfg, classnames, clip_model):
        nn.Module.__init__(self)
        tokens = torch.cat([clip.tokenize(f"a photo of a {name}.") for name in classnames])
        self.prompt_learner = nn.Module()
        with torch.no_grad():
            texts = F.normalize(clip_model.encode_text(tokens), dim=-1)
        self.prompt_learner.register_buffer("texts", texts)
        self.prompt_learner.residual = nn.Parameter(torch.zeros_like(texts))
        self.image_encoder = clip_model.visual
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def texts(self):
        learner = self.prompt_learner
        return F.normalize(learner.texts + 0.5 * learner.residual, dim=-1)


class Cached(CustomCLIP):
    """Prompts only in the image encoder: the first pass encodes the texts and caches them."""

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
        self.cached = None

    def images(self, image):
        ctx = self.prompt_learner.ctx
        return F.normalize(self.image_encoder(image.type(self.dtype), ctx, ()), dim=-1)

    def texts(self):
        if self.cached is None:
            with torch.no_grad():
                self.cached = F.normalize(self.text_encoder(self.embedded, self.tokens), dim=-1)
        return self.cached


class Both(CustomCLIP):
    """Returns its logits and, in training, the loss made of them."""

    def forward(self, image, label=None):
        logits = self.logits(self.images(image), self.texts())
        return (logits, F.cross_entropy(logits, label)) if label is not None else logits


class TwoFeatures(CustomCLIP):
    """Two features of each image, and the logits of each."""

    def forward(self, image):
        images, texts = self.images(image), self.texts()
        other = F.normalize(images + images.roll(1, dims=-1), dim=-1)
        return self.logits(images, texts), self.logits(other, texts)


class Probed(CustomCLIP):
    """A linear classifier beside the texts, which learns from images and from texts."""

    def make_learner(self, classnames, clip_model):
        super().make_learner(classnames, clip_model)
        self.prompt_learner.head = nn.Linear(clip_model.visual.output_dim, len(classnames))

    def forward(self, image, label=None):
        images, texts = self.images(image), self.texts()
        logits = self.logits(images, texts)
        if label is None:
            return logits
        probed = self.prompt_learner.head(torch.cat([texts[label], images]))
        labels = torch.cat([label, label])
        return 0.3 * F.cross_entropy(logits, label) + 0.7 * F.cross_entropy(probed, labels)
