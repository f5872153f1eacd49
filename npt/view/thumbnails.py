"""Images as small pictures in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from npt.errors import sentence
from npt.pictures import read_picture
from npt.view import names
from npt.view.tested import Tested

SIZE = 112  # pixels of the longer side
QUALITY = 75  # of a JPEG; such a picture has about 4 kB


def thumbnails(
    tested: Tested, classnames: Sequence[str], places: Sequence[int], upright: bool
) -> list[dict[str, Any]]:
    """For each of these images its picture (None if it is gone), classes, probability and file.

    upright: whether the model saw photos turned upright (INPUT.EXIF_ROTATE)
    """
    files = names.files(tested.files)
    found = []
    for place in places:
        found.append(
            {
                "picture": picture(tested.files[place], upright),
                "file": files[place],
                "label": classnames[int(tested.labels[place])],
                "predicted": [
                    (classnames[label], 100 * probability)
                    for label, probability in zip(
                        tested.top[place].tolist(),
                        tested.probabilities[place].tolist(),
                        strict=True,
                    )
                ],
            }
        )
    return found


def picture(file: str, upright: bool) -> str | None:
    """A data URI of an image file as the model sees it before its crop; None if it is gone."""
    try:
        image = read_picture(file, upright)
    except Exception as error:
        if sentence(error) is None:
            raise
        return None
    image.thumbnail((SIZE, SIZE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
