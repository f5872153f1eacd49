"""What NPT needs to work in a repository that is not ours: names, features, acceleration, run."""
