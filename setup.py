"""Packaging: everything importable is installed under the one name `npt`.

`trainers/`, `datasets/` and `configs/` stand at the top of the repository, where CoOp users look
for them, and are installed as `npt.trainers`, `npt.datasets` and `npt.configs`: host repositories
and Hugging Face own the bare names.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
OUTSIDE = {"npt.trainers": "trainers", "npt.datasets": "datasets", "npt.configs": "configs"}


def packages() -> list[str]:
    """Every package of the tree; the embedded engine's `dassl` needs no `__init__` above it."""
    inside = find_namespace_packages(str(HERE), include=["npt", "npt.*"])
    return [p for p in inside if "__pycache__" not in p] + list(OUTSIDE)


setup(
    name="npt-clip",
    version="0.1.0",
    description="Neural-collapse-anchored prompt tuning for CLIP, as trainers of the Dassl engine",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=packages(),
    package_dir={"npt": "npt", **OUTSIDE},
    package_data={
        "npt": ["encoders/*.npz"],
        "npt.configs": ["*/*.yaml", "*/*/*.yaml"],
    },
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "numpy",
        "yacs>=0.1.8",
        "tabulate",
        "tqdm",
        # The distribution of OpenAI's CLIP that runs on every torch. It imports `pkg_resources`,
        # which setuptools 82 dropped and 81 warns about.
        "clip-anytorch>=2.6",
        "setuptools<81",
    ],
    extras_require={
        "report": ["matplotlib>=3.7", "pandas>=2.0", "tensorboard"],
        "mat": ["scipy"],  # to make a split of StanfordCars or OxfordFlowers, from MATLAB files
        "test": ["pytest>=7", "hypothesis>=6.80", "ruff>=0.5", "scikit-learn", "scipy"],
    },
)
