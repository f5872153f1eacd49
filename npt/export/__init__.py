"""A trained run in forms that need nothing of this package: `npt export RUN OUT`."""

from npt.export.folder import FORMATS, default_formats, export

__all__ = ["FORMATS", "default_formats", "export"]
