"""Image files as batches for a classifier, decoded while it works."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool

from torch import Tensor

from npt.classifier.model import Classifier
from npt.errors import NPTError, sentence

Decoded = list[tuple[str, "Tensor | NPTError"]]


def decoded(files: Sequence[str], classifier: Classifier) -> Iterator[Decoded]:
    """Batches of files, each with its preprocessed image (3, H, W) or the error of reading it.

    The next batch is decoded while the caller works on this one: never more, which would be many
    gigabytes of a large folder.
    """

    def tried(file: str) -> tuple[str, Tensor | NPTError]:
        try:
            return file, classifier.preprocess(file)[0]
        except Exception as error:  # of the many image libraries
            words = sentence(error)
            if words is None:
                raise
            return file, NPTError(words)

    size = classifier.batch_size
    pool = ThreadPool(os.cpu_count())
    try:
        ahead = pool.map_async(tried, files[:size])
        for start in range(size, len(files) + size, size):
            batch = ahead.get()
            ahead = pool.map_async(tried, files[start : start + size])
            yield batch
    finally:
        pool.terminate()
        pool.join()  # a thread that still decodes while Python ends would abort it
