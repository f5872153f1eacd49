"""CLIP with prompts, exact and fast: the loader and the two encoders every trainer here uses."""

from npt.encoders.image import ImageEncoder
from npt.encoders.loading import load_clip
from npt.encoders.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder", "load_clip"]
