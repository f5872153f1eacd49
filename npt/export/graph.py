"""The computation of a classifier as one module that torch's ONNX exporter can trace."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from npt.encoders import ClassPrompts
from npt.encoders.plain import PlainImageEncoder
from npt.losses import unit_rows
from npt.randomness import random_state_kept
from npt.session import silent

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock

    from npt.classifier import Classifier


class Graph(nn.Module):
    """Images (N, 3, H, W) to features (N, E) of length 1, logits and probabilities (N, K).

    The encoders are the plain ones: the fast ones have operators that ONNX does not know.
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        model = classifier.model
        self.image_encoder = PlainImageEncoder(classifier.clip_model.visual)
        self.prompts = model.prompt_learner.visual()
        self.scale = model.logit_scale.exp().item()
        self.temperature = classifier.temperature
        kind = TextsOfImages if classifier.depends_on_image else FixedTexts
        self.cosines = kind(classifier)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = unit_rows(self.image_encoder(images, *self.prompts))
        logits = self.scale * self.cosines(features)
        return features, logits, (logits / self.temperature).softmax(-1)


class FixedTexts(nn.Module):
    """Cosines (N, K) of image features (N, E) with class texts that are the same for all images."""

    texts: Tensor  # (K, E)

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.register_buffer("texts", classifier.text_features)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.texts.t()


class TextsOfImages(nn.Module):
    """Cosines (N, K) of image features (N, E) with the class texts of each image (CoCoOp).

    All prompts are cut behind the longest one; CLIP's text encoder does not look ahead.
    """

    words: Tensor  # (K, T, D), zero where the context is
    place: Tensor  # (K T, n), one where a token is that context vector, else zero
    positions: Tensor  # (T, D)
    ends: Tensor  # (K,) of the tokens (K T)

    def __init__(self, classifier: Classifier):
        super().__init__()
        clip_model, prompts = classifier.clip_model, class_prompts(classifier)
        assert prompts.slots is not None, "an image has a part in the texts by their context"
        ends = prompts.tokens.argmax(-1)
        length = int(ends.max()) + 1
        place = (prompts.slots[:, None] == torch.arange(length)[:, None]).float()  # (K, T, n)
        words = clip_model.token_embedding(prompts.tokens[:, :length])
        self.register_buffer("words", words * (1 - place.sum(-1, keepdim=True)))
        self.register_buffer("place", place.flatten(0, 1))
        self.register_buffer("positions", clip_model.positional_embedding[:length])
        self.register_buffer("ends", ends + length * torch.arange(len(ends)))
        self.learner = classifier.model.prompt_learner
        blocks = clip_model.transformer.resblocks
        self.layers = nn.ModuleList(_of_length(layer, length) for layer in blocks)
        self.ln_final, self.projection = clip_model.ln_final, clip_model.text_projection

    def forward(self, features: Tensor) -> Tensor:
        context, _ = self.learner(features)  # (N, 1, n, D)
        length, width = self.positions.shape
        x = (self.place @ context[:, 0]).reshape(-1, *self.words.shape) + self.words
        x = (x + self.positions).reshape(-1, length, width).permute(1, 0, 2)  # (T, N K, D)
        for layer in self.layers:
            x = layer(x)
        x = x.permute(1, 0, 2).reshape(features.shape[0], -1, width)  # (N, K T, D)
        texts = unit_rows(self.ln_final(x.index_select(1, self.ends)) @ self.projection)
        return (texts @ features.unsqueeze(-1)).squeeze(-1)


def _of_length(layer: ResidualAttentionBlock, length: int) -> ResidualAttentionBlock:
    """A layer of the text encoder for that many tokens, with the same weights."""
    short = copy.copy(layer)
    short.attn_mask = layer.attn_mask[:length, :length]
    return short


def class_prompts(classifier: Classifier) -> ClassPrompts:
    """The prompts of a classifier's classes as token ids, with the places of the context."""
    from npt.trainers.prompts import Classes

    run, classes = classifier.run, Classes(classifier.classes, classifier.template)
    with silent(), random_state_kept():  # a context is drawn, too
        return run.method.build_prompts(run.cfg, classes, classifier.clip_model)[1]
