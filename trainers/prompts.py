"""Shared by all methods: the model, the prompt texts, and the initial context vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npt.backbones.openai import is_vit, openai_clip
from npt.class_names import check_names, readable
from npt.errors import NPTError
from npt.losses import unit_rows, without_autocast

if TYPE_CHECKING:
    from clip.model import CLIP

CONTEXT_STD = 0.02  # standard deviation of random initial context vectors
TEMPLATE = "a photo of a {}."  # of hand-written prompts, for a data set without one


class Classes(NamedTuple):
    """The classes that a model tells apart: their names, and the template of prompts by hand."""

    names: list[str]
    template: str = TEMPLATE

    @classmethod
    def of(cls, dataset: Any) -> Classes:
        return cls(list(dataset.classnames), template_of(dataset))


def template_of(dataset: Any) -> str:
    """The prompt template of a data set.

    That is its attribute `template`; for a host's data set without one, the template of the
    catalog's data set of the same name; else TEMPLATE.
    """
    template = getattr(dataset, "template", None)
    if isinstance(template, str):
        return template
    from npt.datasets.catalog import CATALOG

    row = CATALOG.get(type(dataset).__name__)
    return TEMPLATE if row is None else row.template


class PromptLearner(nn.Module):
    """The trained part of a model. This base class has no parameters: hand-written prompts."""

    def visual(self) -> tuple[Tensor | None, list[Tensor]]:
        """Context (n, Dv) or None, and deep prompts (n, Dv) each, for the image encoder."""
        return None, []

    def forward(self, image_features: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Context and deep prompts for the text encoder, see `TextEncoder.forward`.

        image_features: (B, E), of length 1
        """
        return None, []


class PromptedCLIP(nn.Module):
    """A frozen CLIP with a prompt learner."""

    def __init__(
        self,
        learner: PromptLearner,
        text_encoder: nn.Module,
        image_encoder: nn.Module,
        logit_scale: nn.Parameter,
    ):
        super().__init__()
        self.prompt_learner = learner
        self.text_encoder = text_encoder.eval()
        self.image_encoder = image_encoder.eval()
        self.logit_scale = logit_scale
        for part in (self.text_encoder, self.image_encoder):
            part.requires_grad_(False)
        self.logit_scale.requires_grad_(False)

    def train(self, mode: bool = True) -> PromptedCLIP:
        """Sets the mode of the prompt learner only, so that a ResNet's batch norms stay frozen."""
        self.training = mode
        self.prompt_learner.train(mode)
        return self

    def encode_images(self, image: Tensor) -> Tensor:
        """Features (B, E), of length 1, of images (B, 3, H, W)."""
        return unit_rows(self.image_encoder(image, *self.prompt_learner.visual()))

    def encode_texts(self, images: Tensor) -> Tensor:
        """Features of length 1 of the classes: (K, E), or (B, K, E) if each image has its own.

        images: image features (B, E), of length 1
        """
        return unit_rows(self.text_encoder(*self.prompt_learner(images)))

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W); in training mode with labels (B,) their loss."""
        images = self.encode_images(image)
        logits = self.classify(images, self.encode_texts(images))
        if label is not None and self.prompt_learner.training:
            return F.cross_entropy(logits, label)
        return logits

    def classify(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits (B, K) of features of length 1: images (B, E), texts (K, E) or (B, K, E)."""
        with without_autocast(images.device):
            images = self.logit_scale.exp().to(images.dtype) * images
            if texts.dim() == 2:
                return images @ texts.t()
            return torch.bmm(texts, images.unsqueeze(-1)).squeeze(-1)


def tokenize(texts: list[str], classnames: list[str]) -> Tensor:
    """Token ids (K, 77) of the prompt texts of the classes.

    NPTError if a text is too long, or a class name cannot be in a prompt (`check_names`).
    """
    check_names(classnames)
    rows = []
    for text, name in zip(texts, classnames, strict=True):
        try:
            rows.append(openai_clip().tokenize(text))
        except RuntimeError as error:
            raise NPTError(
                f"the prompt of class {name!r} is longer than the 77 tokens CLIP takes; "
                "shorten the class name, or lower N_CTX or CTX_INIT of the trainer"
            ) from error
    return torch.cat(rows)


def class_prompts(prefix: str, classnames: list[str]) -> Tensor:
    """Token ids (K, 77) of "<prefix> <class name>."."""
    return tokenize([f"{prefix} {readable(name)}." for name in classnames], classnames)


def context_width(clip_model: CLIP) -> int:
    return clip_model.ln_final.weight.shape[0]


def visual_width(clip_model: CLIP) -> int:
    """Width Dv of the visual tokens; NPTError for a ResNet, which has none."""
    if not is_vit(clip_model.visual):
        raise NPTError(
            "MaPLe needs a ViT, and MODEL.BACKBONE.NAME is a CLIP with a ResNet; set it to a ViT "
            "such as ViT-B/16"
        )
    return clip_model.visual.ln_post.weight.shape[0]


def random_context(*shape: int) -> tuple[Tensor, str]:
    """Random initial context vectors (..., n, D), and the placeholder text "X X ... X" for them."""
    return torch.empty(shape).normal_(std=CONTEXT_STD), " ".join(["X"] * shape[-2])


def written_context(clip_model: CLIP, text: str, n: int, key: str) -> tuple[Tensor, str]:
    """The embeddings (n, D) of the first n tokens of `text`, and `text` with spaces for "_".

    NPTError if it has fewer tokens; key: the config node of CTX_INIT and N_CTX, for the message
    """
    text = text.replace("_", " ")
    tokens = tokenize([text], [text])
    found = int(tokens.argmax()) - 1
    if n > found:
        raise NPTError(
            f"{key}.CTX_INIT {text!r} has {found} tokens, fewer than {key}.N_CTX = {n}; "
            "use a longer text, or an empty one for a random context"
        )
    with torch.no_grad():
        weight = clip_model.token_embedding.weight
        return weight[tokens[0, 1 : 1 + n].to(weight.device)].float(), text


def announce(prefix: str, n: int) -> None:
    """Print the initial context, as the original code does."""
    print(f'Initial context: "{prefix}"')
    print(f"Number of context words (tokens): {n}")
