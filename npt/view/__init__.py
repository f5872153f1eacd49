"""The page of a run, `npt view`: what its record says, and what its model does with its images."""
