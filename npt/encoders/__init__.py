"""CLIP with prompts, exact and fast: the loader and the two encoders every trainer here uses."""

import warnings

with warnings.catch_warnings():  # clip's own import of pkg_resources concerns nobody here
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    import clip  # noqa: F401

from npt.encoders.image import ImageEncoder
from npt.encoders.loading import load_clip
from npt.encoders.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder", "load_clip"]
