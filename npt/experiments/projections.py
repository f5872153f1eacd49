"""Features in two dimensions: their principal plane, or t-SNE.

The features are unit vectors minus the mean of their modality, because the two modalities of CLIP
differ by a constant offset, which would dominate both and does not depend on the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from npt.experiments.features import SplitFeatures

POINTS_PER_CLASS = 40
COLUMNS = ["kind", "class", "x", "y"]  # of what a panel shows
Places = tuple[np.ndarray, list[np.ndarray]]  # of texts (C, 2), of the images of each class (n, 2)
Projection = Callable[[SplitFeatures, Sequence[int]], Places]


def pca(features: SplitFeatures, classes: Sequence[int]) -> Places:
    """The principal plane of the text features and the class means of the image features.

    So all classes have the same weight. Distances and angles in the plane mean something.
    """
    text, images = _centred(features, classes)
    means = np.stack([x.mean(0) for x in images])  # (C, D)
    _, _, axes = np.linalg.svd(np.concatenate([text, means]), full_matrices=False)
    plane = axes[:2].T  # (D, 2)
    # The sign of a component is arbitrary: make its largest entry positive.
    plane = plane * np.where(np.abs(plane).max(0) == plane.max(0), 1, -1)
    return text @ plane, [x @ plane for x in images]


def tsne(features: SplitFeatures, classes: Sequence[int]) -> Places:
    """t-SNE of texts and images together (van der Maaten and Hinton, 2008), of unit size.

    It shows who is near to whom; distances between groups mean nothing. Seeded: the same features
    give the same picture with the same scikit-learn. Perplexity 30, or less for few images.
    """
    from sklearn.manifold import TSNE

    text, images = _centred(features, classes)
    images = [x[evenly(len(x), POINTS_PER_CLASS)] for x in images]
    every = np.concatenate([text, *images]).astype(np.float64)
    perplexity = min(30.0, (len(every) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(every)
    places = places - places.mean(0)
    places = places / np.abs(places).max()
    ends = np.cumsum([len(text), *map(len, images)])[:-1]
    of_text, *of_images = np.split(places, ends)
    return of_text, of_images


PROJECTIONS: dict[str, Projection] = {"pca": pca, "tsne": tsne}


def points_of(
    features: SplitFeatures,
    classes: Sequence[int],
    like: np.ndarray | None = None,
    projection: str = "pca",
) -> pd.DataFrame:
    """What a panel shows of these classes: rows of kind, class (its name), x, y.

    Kinds are the "text" of a class, the "mean" of all its images (pca), and "image", at most
    POINTS_PER_CLASS of a class. Every class must have images.

    like: text coordinates (C, 2) to which those here are turned, or mirrored, as close as possible;
        distances and angles stay
    """
    text, images = PROJECTIONS[projection](features, classes)
    if like is not None:
        left, _, right = np.linalg.svd(text.T @ like)
        text, images = text @ left @ right, [x @ left @ right for x in images]
    shown = {"image": [x[evenly(len(x), POINTS_PER_CLASS)] for x in images]}
    if projection == "pca":
        shown["mean"] = [x.mean(0, keepdims=True) for x in images]
    shown["text"] = list(text[:, None])
    rows = [
        (kind, str(features.classnames[k]), x, y)
        for kind, places in shown.items()
        for k, of_class in zip(classes, places, strict=True)
        for x, y in of_class
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def evenly(number: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers below `number`, from the first to the last."""
    return np.linspace(0, number - 1, min(number, limit)).round().astype(int)


def _centred(
    features: SplitFeatures, classes: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Texts (C, D) and the images of each class (n, D) without the mean of their modality."""
    text = features.text[list(classes)]  # (C, D)
    images = [features.image[features.labels == k] for k in classes]
    centre = np.stack([x.mean(0) for x in images]).mean(0)
    return text - text.mean(0), [x - centre for x in images]
