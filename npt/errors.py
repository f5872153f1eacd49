"""The one exception that npt raises for what a user can put right."""


class NPTError(Exception):
    """One sentence for the user: what is wrong, where, and what to do about it."""
