"""A small engine with the import names, defaults and behaviour of Dassl 0.6.3.

Code of the CoOp family runs on it unchanged. It is written independently of Dassl. It depends on
torch, torchvision, numpy, Pillow, yacs, tabulate and tqdm, and not on the package that contains it.
"""

if __name__ != "dassl":  # a second copy under another name would have its own registries
    raise ImportError(f"import this package as dassl, not as {__name__}")

__version__ = "0.6.3+embedded"
