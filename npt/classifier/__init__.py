"""A trained run as a classifier of images: `npt.load("output/mine").predict("photo.jpg")`."""

from typing import TYPE_CHECKING, Any

from npt.classifier.saved import SavedRun

if TYPE_CHECKING:
    from npt.classifier.model import Classifier, Prediction, load

__all__ = ["Classifier", "Prediction", "SavedRun", "load"]


def __getattr__(name: str) -> Any:
    """The names that need torch, which takes seconds to import, at their first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from npt.classifier import model

    return getattr(model, name)
