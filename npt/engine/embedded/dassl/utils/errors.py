"""Errors that a user can correct: in the config, on the command line, or in files.

A program can print them without a traceback. Each class is also the builtin error that Dassl raises
in that case (ValueError, KeyError, ...), because hosts may catch that one. Errors in the use of the
engine's functions are plain TypeErrors, ValueErrors, ... and not UserErrors.
"""


class UserError(Exception):
    """The message is one sentence: what is wrong, where, and what to do."""

    __str__ = Exception.__str__  # the one of KeyError would add quotation marks


class InvalidValue(UserError, ValueError):
    """A config key has a value that cannot be used, or a file has invalid content."""


class UnknownName(UserError, KeyError):
    """A registry does not contain a name."""


class MissingFile(UserError, FileNotFoundError):
    """A file does not exist."""


class UnreadableFile(UserError, OSError):
    """A file exists but cannot be read."""


class UnusableCheckpoint(UserError, RuntimeError):
    """A checkpoint is damaged, or does not fit the model."""


class NotFinite(UserError, FloatingPointError):
    """A loss is infinite or NaN."""
