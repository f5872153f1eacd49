"""Image transforms. torchvision is slow to import, so it is imported at the first use."""

from .transforms import AVAI_CHOICES, build_transform

__all__ = ["AVAI_CHOICES", "INTERPOLATION_MODES", "build_transform"]


def __getattr__(name: str):
    from . import transforms

    try:
        return getattr(transforms, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
