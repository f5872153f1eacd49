"""NPT inside a host repository: trainer names, features, acceleration, thinned data, `npt.run`."""
