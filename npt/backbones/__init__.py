"""The frozen CLIP: which one a name means, and how it is read into the classes of package clip."""
