"""Models whose encoders have more than prompts: what npt.accelerate meets in other repositories."""

import clip
import torch
from torch import nn
from torch.nn import functional as F

from .models import CustomCLIP, TextEncoder


def causal_mask(size):
    return torch.full((size, size), float("-inf")).triu_(1)


def run_layer(layer, x, mask=None):
    """A layer of CLIP, piece by piece, as repositories that change the layers write it."""
    y = layer.ln_1(x)
    x = x + layer.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    return x + layer.mlp(layer.ln_2(x))


class Attributes(CustomCLIP):
    """Context vectors in two parts, with the word of an attribute between them."""

    def make_learner(self, classnames, clip_model):
        self.prompt_learner = nn.Module()
        width = clip_model.ln_final.weight.shape[0]
        texts = [f"X X colour X X X {name}." for name in classnames]
        self.prompt_learner.tokenized_prompts = torch.cat([clip.tokenize(x) for x in texts])
        with torch.no_grad():
            self.embedded = clip_model.token_embedding(self.prompt_learner.tokenized_prompts)
        self.prompt_learner.first = nn.Parameter(torch.randn(2, width) * 0.02)
        self.prompt_learner.second = nn.Parameter(torch.randn(3, width) * 0.02)

    def texts(self):
        learner, x = self.prompt_learner, self.embedded
        first, second = (p.expand(len(x), -1, -1) for p in (learner.first, learner.second))
        prompts = torch.cat([x[:, :1], first, x[:, 3:4], second, x[:, 7:]], dim=1)
        return F.normalize(self.text_encoder(prompts, self.tokenized_prompts), dim=-1)


class ClassAwareEncoder(TextEncoder):
    """Puts a prompt of each class in place of the context, at the input of a layer."""

    def forward(self, prompts, of_classes, weight, tokenized_prompts):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        for i, layer in enumerate(self.transformer.resblocks):
            if i == 2:
                n = of_classes.shape[1]
                placed = weight * of_classes.permute(1, 0, 2) + (1 - weight) * x[1 : 1 + n]
                x = torch.cat([x[:1], placed, x[1 + n :]])
            x = layer(x)
        x = self.ln_final(x.permute(1, 0, 2))
        ends = tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), ends] @ self.text_projection


class ClassAware(CustomCLIP):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        self.text_encoder.__class__ = ClassAwareEncoder

    def make_learner(self, classnames, clip_model):
        super().make_learner(classnames, clip_model)
        learner = self.prompt_learner
        self.features = torch.randn(len(classnames), 8)
        learner.meta = nn.Linear(8, 4 * learner.ctx.shape[-1])

    def texts(self):
        learner = self.prompt_learner
        of_classes = learner.meta(self.features).unflatten(1, (4, -1))  # (K, 4, D)
        x = self.text_encoder(learner(), of_classes, 0.7, self.tokenized_prompts)
        return F.normalize(x, dim=-1)


class InsertingEncoder(TextEncoder):
    """More tokens from the second layer on, after the start token, and with a longer mask."""

    def forward(self, prompts, tokenized_prompts, more):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        n = len(more[0])
        for i, layer in enumerate(self.transformer.resblocks):
            if i:
                old = x[1:] if i == 1 else x[1 + n :]
                x = torch.cat([x[:1], more[i - 1][:, None].expand(-1, x.shape[1], -1), old])
                layer.attn_mask = causal_mask(len(x)).to(x.dtype)
            x = run_layer(layer, x, layer.attn_mask)
        x = self.ln_final(x.permute(1, 0, 2))
        ends = tokenized_prompts.argmax(dim=-1) + n
        return x[torch.arange(len(x)), ends] @ self.text_projection


class InsertingViT(nn.Module):
    """Returns the features of the class token, and those of tokens that were put in."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.proj = nn.Parameter(visual.proj.detach().clone())

    def forward(self, given):
        image, more = given
        visual = self.visual
        x = visual.conv1(image).flatten(2).permute(0, 2, 1)
        cls = visual.class_embedding.expand(len(x), 1, -1)
        x = visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding)
        x = x.permute(1, 0, 2)
        for i, layer in enumerate(visual.transformer.resblocks):
            if i == 1:
                x = torch.cat([x[:1], more[:, None].expand(-1, x.shape[1], -1), x[1:]])
            x = layer(x)
        inserted = visual.ln_post(x[1 : 1 + len(more)]).mean(0)
        return visual.ln_post(x[0]) @ visual.proj, inserted @ self.proj


class Inserting(CustomCLIP):
    """Fixed prompts, and learned tokens in the upper layers of both encoders."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        self.text_encoder.__class__ = InsertingEncoder
        self.image_encoder = InsertingViT(self.image_encoder)

    def make_learner(self, classnames, clip_model):
        texts = [f"a photo of a {name}." for name in classnames]
        self.prompt_learner = learner = nn.Module()
        learner.tokenized_prompts = torch.cat([clip.tokenize(x) for x in texts])
        with torch.no_grad():
            self.embedded = clip_model.token_embedding(learner.tokenized_prompts)
        width, visual_width = (
            norm.weight.shape[0] for norm in (clip_model.ln_final, clip_model.visual.ln_post)
        )
        learner.tokens = nn.Parameter(torch.randn(5, 16))
        learner.to_text = nn.ModuleList(nn.Linear(16, width) for _ in range(11))
        learner.to_image = nn.Linear(16, visual_width)

    def forward(self, image):
        learner = self.prompt_learner
        more = [m(learner.tokens) for m in learner.to_text]
        texts = self.text_encoder(self.embedded, self.tokenized_prompts, more)
        images, others = self.image_encoder([image, learner.to_image(learner.tokens)])
        texts, images, others = (F.normalize(x, dim=-1) for x in (texts, images, others))
        return self.logits(0.7 * images + 0.3 * others, texts)


class Adapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.adapter = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))

    def forward(self, x):
        return x + self.adapter(x)


class Adapting(CustomCLIP):
    """Trained adapters behind the layers of both encoders, and fixed prompts."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        for encoder in (self.text_encoder, self.image_encoder):
            for layer in encoder.transformer.resblocks[1:]:
                layer.mlp = nn.Sequential(layer.mlp, Adapter(layer.ln_2.weight.shape[0]))


class Parallel(CustomCLIP):
    """The text encoder inside DataParallel."""

    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        self.text_encoder = nn.DataParallel(self.text_encoder)


class MaskedTransformer(nn.Module):
    def __init__(self, resblocks):
        super().__init__()
        self.resblocks = resblocks

    def forward(self, x, mask):
        for layer in self.resblocks:
            x = run_layer(layer, x, mask)
        return x


class ReadOnly(CustomCLIP):
    """Calls CLIP's transformers itself: prompts after the end of a text, which no token sees."""

    def __init__(self, cfg, classnames, clip_model):
        nn.Module.__init__(self)
        self.transformer = MaskedTransformer(clip_model.transformer.resblocks)
        self.ln_final = clip_model.ln_final
        self.visual = clip_model.visual
        self.projection, self.logit_scale = clip_model.text_projection, clip_model.logit_scale
        self.dtype = clip_model.dtype
        tokens = torch.cat([clip.tokenize(f"a photo of a {name}.") for name in classnames])
        self.ends = tokens.argmax(dim=-1)
        with torch.no_grad():
            embedded = clip_model.token_embedding(tokens) + clip_model.positional_embedding
        self.embedded = embedded
        heads = self.transformer.resblocks[0].attn.num_heads
        masks = causal_mask(77).repeat(len(tokens), 1, 1)
        for mask, end in zip(masks, self.ends.tolist(), strict=True):
            mask[:, end + 1 :] = float("-inf")  # no token sees what comes after the text
            mask[end + 1, end + 1] = 0  # but the prompt itself
        self.masks = masks.repeat_interleave(heads, dim=0).clamp(min=-1e4)  # (K * H, 77, 77)
        self.prompt_learner = nn.Module()
        self.prompt_learner.ctx = nn.Parameter(torch.randn(embedded.shape[-1]) * 0.02)

    def forward(self, image):
        rows = torch.arange(len(self.ends))
        x = self.embedded.index_put((rows, self.ends + 1), self.prompt_learner.ctx)
        x = self.transformer(x.permute(1, 0, 2), self.masks)
        x = self.ln_final(x.permute(1, 0, 2))[rows, self.ends + 1]
        images = F.normalize(self.visual(image), dim=-1)
        return self.logits(images, F.normalize(x @ self.projection, dim=-1))
