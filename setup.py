"""Packaging: everything importable is installed under the one name `npt`.

`trainers/`, `datasets/` and `configs/` are at the top of the repository, where CoOp users look for
them, and are installed as `npt.trainers`, `npt.datasets` and `npt.configs`, because host
repositories and Hugging Face own the bare names. In a checkout, npt/trainers and the others are
symbolic links; a checkout without links (Windows) is installed from the same folders.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
PAGES = ("pages", "experiments/report", "view")  # with templates
LINKED = {"npt.trainers": "trainers", "npt.datasets": "datasets", "npt.configs": "configs"}


def packages() -> list[str]:
    """Every package, each once; the embedded engine's `dassl` needs no `__init__` above it."""
    found = find_namespace_packages(str(HERE), include=["npt", "npt.*"])
    inside = [p for p in found if "__pycache__" not in p and not p.startswith(tuple(LINKED))]
    return [*inside, *LINKED]


def version() -> str:
    """The version from npt/version.py, without importing torch."""
    text = (HERE / "npt" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


setup(
    name="npt-clip",
    version=version(),
    description="Neural-collapse-anchored prompt tuning for CLIP, as trainers of the Dassl engine",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The NPT for CLIP developers",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["CLIP", "prompt tuning", "neural collapse", "long-tailed", "CoOp", "MaPLe", "Dassl"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=packages(),
    package_dir={"npt": "npt", **LINKED},
    package_data={
        "npt": ["py.typed", "backbones/*.npz", *(f"{x}/templates/*" for x in PAGES)],
        "npt.configs": ["*/*.yaml", "*/*/*.yaml", "*/*/*/*.yaml"],
    },
    entry_points={"console_scripts": ["npt = npt.__main__:main"]},
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "numpy",
        "yacs>=0.1.8",
        "pyyaml",
        "tabulate",
        "tqdm",
        "shtab",  # npt completion; without it, a sentence
        # The distribution of OpenAI's CLIP that runs on every torch. It imports `pkg_resources`,
        # which setuptools 82 dropped and 81 warns about.
        "clip-anytorch>=2.6",
        "setuptools<81",
    ],
    extras_require={
        "report": [
            "jinja2>=3.1",
            "matplotlib>=3.7",
            "pandas>=2.0",
            "safetensors",
            "scikit-learn",
            "scipy",
            "tensorboard",
        ],
        "export": ["onnx>=1.14", "onnxruntime>=1.16", "safetensors"],  # npt export
        "mat": ["scipy"],  # to make a split of StanfordCars or OxfordFlowers, from MATLAB files
        "cluster": ["submitit>=1.5"],  # python -m npt.experiments ... --slurm
        "hf": ["huggingface_hub", "safetensors"],  # --backbone hf:ORGANISATION/NAME, or a folder
        "open_clip": ["open_clip_torch>=2.24", "safetensors"],  # --backbone open_clip:MODEL/TAG
        "wandb": ["wandb>=0.17"],  # TRAIN.WANDB
        "test": [
            "pytest>=7",
            "pytest-xdist>=3",
            "hypothesis>=6.80",
            "ruff>=0.5",
            "mypy>=1.10",
            "onnx>=1.14",
            "onnxruntime>=1.16",
            "open_clip_torch>=2.24",
            "playwright",
            "safetensors",
            "scikit-learn",
            "scipy",
            "submitit>=1.5",
            "transformers>=4.40",
        ],
    },
)
