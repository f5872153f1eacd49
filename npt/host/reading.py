"""Images of an installed Dassl are read as those of the embedded engine (`npt.pictures`).

Dassl's own function makes 16-bit images white, and does not name a file that it cannot read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from npt import engine
from npt.pictures import read_picture


def wrap_reading() -> None:
    """Let the data sets of an installed Dassl read images by `read_picture`, as their config says.

    Repeating it changes nothing. It acts on Dassl's `DatasetWrapper`, and on classes derived of it;
    what a host reads by functions of its own stays as it is.
    """
    if engine.describe().name == "embedded":
        return
    from dassl.data import data_manager

    wrapper: Any = data_manager.DatasetWrapper
    get = wrapper.__getitem__
    if get.__module__ == __name__ or not hasattr(data_manager, "read_image"):
        return

    def __getitem__(self: Any, index: int) -> Any:
        rotate = self.cfg.INPUT.get("EXIF_ROTATE", False)
        data_manager.read_image = partial(read_picture, upright=rotate)
        return get(self, index)

    wrapper.__getitem__ = __getitem__
