"""CLIP as hosts of the family use it: every class with all its 77 tokens, every time."""

import os

import clip
import torch
from clip.model import build_model
from torch import nn
from torch.nn import functional as F

CLIP_FILE = "HOST_CLIP"  # the environment variable that names the weights


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
        x = x.permute(1, 0, 2)  # (77, K, D), as CLIP's layers want it
        for i, layer in enumerate(self.transformer.resblocks):
            own = getattr(layer, "VPT_shallow", None)
            if own is not None:
                x = put(x, own, 1)
            elif 0 < i <= len(deep):
                x = put(x, deep[i - 1], 1)
            x = layer(x)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        ends = tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), ends] @ self.text_projection


class PromptedViT(nn.Module):
    """CLIP's image encoder with prompts behind the patch tokens."""

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
    """x (L, B, D) with prompt (n, D) in the rows from `first`."""
    prompt = prompt.to(x.dtype).unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat([x[:first], prompt, x[first + len(prompt) :]])


class CustomCLIP(nn.Module):
    """Logits of images; a method overrides what it does otherwise."""

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
