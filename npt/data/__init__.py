"""`python -m npt.data check|prepare|show`: the data sets of the paper on this disk."""
