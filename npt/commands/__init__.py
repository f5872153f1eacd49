"""The verbs of the command `npt` that work with one run, one module each."""
