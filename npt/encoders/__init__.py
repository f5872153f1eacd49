"""CLIP with prompts: encoders that return CLIP's own values in less time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from npt.encoders.image import ImageEncoder
from npt.encoders.linear import choose
from npt.encoders.packing import ClassPrompts
from npt.encoders.plain import PlainImageEncoder, PlainTextEncoder
from npt.encoders.text import TextEncoder

if TYPE_CHECKING:
    from clip.model import CLIP

__all__ = ["ClassPrompts", "ImageEncoder", "TextEncoder", "build_encoders"]


def build_encoders(
    clip_model: CLIP,
    prompts: ClassPrompts,
    class_chunk: int = 0,
    plain: bool = False,
    linear: str = "auto",
) -> tuple[nn.Module, nn.Module]:
    """The text encoder for these prompts and the image encoder.

    class_chunk: see TextEncoder
    plain: return the slow reference encoders of `npt.encoders.plain`
    linear: how products with the model's weights are computed, see `npt.encoders.linear.choose`
    """
    if plain:
        return PlainTextEncoder(clip_model, prompts), PlainImageEncoder(clip_model.visual)
    choose(clip_model.parameters(), linear)
    text_encoder = TextEncoder(clip_model, prompts, class_chunk)
    return text_encoder, ImageEncoder(clip_model.visual)
