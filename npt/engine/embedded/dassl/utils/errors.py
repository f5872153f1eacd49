"""Errors that the user can put right, each one sentence.

They are also the builtin errors that callers of this engine expect (ValueError, KeyError, ...). A
program can print a `UserError` without its traceback.
"""


class UserError(Exception):
    """One sentence for the user: what is wrong, where, and what to do about it."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotes


class InvalidValue(UserError, ValueError):
    """A config key or an argument has a value that cannot be used."""


class UnknownName(UserError, KeyError):
    """Nothing is registered under a name."""


class MissingFile(UserError, FileNotFoundError):
    """A file is not there."""


class UnreadableFile(UserError, OSError):
    """A file is there and cannot be read."""


class UnusableCheckpoint(UserError, RuntimeError):
    """A checkpoint is damaged, or belongs to another model."""


class NotFinite(UserError, FloatingPointError):
    """A loss is infinite or not a number."""
