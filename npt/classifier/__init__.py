"""A trained run as a classifier of images: `npt.load("output/mine").predict("photo.jpg")`."""

from npt.classifier.model import Classifier, Prediction, load
from npt.classifier.saved import SavedRun

__all__ = ["Classifier", "Prediction", "SavedRun", "load"]
