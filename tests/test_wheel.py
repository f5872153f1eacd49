"""What `pip install` puts into a user's environment."""

import shutil
import zipfile

import pytest

PARTS = ("npt", "trainers", "datasets", "configs")


@pytest.fixture(scope="module")
def wheel(python, repository, tmp_path_factory) -> list[str]:
    """The names in the wheel of the tree, built without the network."""
    tree, out = (tmp_path_factory.mktemp(name) for name in ("tree", "wheel"))
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / part, tree / part, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, tree)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
    done = python("-m", "pip", "wheel", tree, *options)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_everything_is_under_one_name(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"npt", next(top for top in tops if top.endswith(".dist-info"))}


def test_it_has_what_it_needs_and_nothing_else(wheel, repository):
    needed = {"npt/encoders/tiny_clip.npz"}
    for part in PARTS:
        for suffix in ("*.py", "*.yaml"):
            for file in (repository / part).rglob(suffix):
                name = file.relative_to(repository).as_posix()
                needed.add(name if part == "npt" else f"npt/{name}")
    assert {name for name in wheel if ".dist-info/" not in name} == needed


def test_what_plugins_do_not_need_is_an_extra(wheel, repository):
    text = (repository / "setup.py").read_text()
    required = text.split("install_requires=[")[1].split("],")[0]
    for heavy in ("matplotlib", "pandas", "tensorboard", "scipy", "submitit", "pytest"):
        assert f'"{heavy}' not in required
