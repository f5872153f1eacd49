"""A small engine with the import names, defaults and behaviour of Dassl 0.6.3.

CoOp-family code runs on it unchanged. Written independently; it depends on torch, torchvision,
numpy, Pillow, yacs, tabulate and tqdm, and on nothing of the package that carries it.
"""

if __name__ != "dassl":  # a second copy would have registries of its own
    raise ImportError(f"import this package as dassl, not as {__name__}")

__version__ = "0.6.3+embedded"
