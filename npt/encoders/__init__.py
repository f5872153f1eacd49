"""CLIP with prompts, exact and fast: the loader and the two encoders every trainer here uses."""

from torch import nn

from npt.encoders.image import ImageEncoder
from npt.encoders.loading import load_clip
from npt.encoders.openai import CLIP
from npt.encoders.packing import ClassPrompts
from npt.encoders.plain import PlainImageEncoder, PlainTextEncoder
from npt.encoders.text import TextEncoder

__all__ = ["ClassPrompts", "ImageEncoder", "TextEncoder", "build_encoders", "load_clip"]


def build_encoders(
    clip_model: CLIP, prompts: ClassPrompts, class_chunk: int = 0, plain: bool = False
) -> tuple[nn.Module, nn.Module]:
    """The text encoder for these prompts and the image encoder; `plain`: the reference ones."""
    if plain:
        return PlainTextEncoder(clip_model, prompts), PlainImageEncoder(clip_model.visual)
    text_encoder = TextEncoder(clip_model, prompts, class_chunk)
    return text_encoder, ImageEncoder(clip_model.visual)
