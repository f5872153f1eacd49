"""`python -m npt.data check|prepare|show`: checks, downloads and shows data sets."""
