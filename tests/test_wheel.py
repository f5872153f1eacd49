"""What `pip install` puts into a user's environment, from a checkout with links and without."""

import importlib.metadata
import zipfile

import pytest
from tree_kit import copy_tree

LINKED = ("trainers", "datasets", "configs")
PARTS = ("npt", *LINKED)


@pytest.fixture(scope="module", params=["links", "no links"])
def wheel(request, python, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of the tree, built without the network."""
    tree, out = (tmp_path_factory.mktemp(name) for name in ("tree", "wheel"))
    copy_tree(tree)
    for part in LINKED:
        assert (tree / "npt" / part).is_symlink()
        if request.param == "no links":  # as git leaves them on a system without
            (tree / "npt" / part).unlink()
            (tree / "npt" / part).write_text(f"../{part}")
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
    done = python("-m", "pip", "wheel", tree, *options)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_everything_is_under_one_name(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"npt", next(top for top in tops if top.endswith(".dist-info"))}


def test_it_has_what_it_needs_and_nothing_else(wheel, repository):
    needed = {"npt/backbones/tiny_clip.npz", "npt/py.typed"}
    for part in PARTS:
        for suffix in ("*.py", "*.yaml"):
            for file in (repository / part).rglob(suffix):
                name = file.relative_to(repository).as_posix()
                needed.add(name if part == "npt" else f"npt/{name}")
    for file in (repository / "npt").rglob("templates/*"):
        needed.add(file.relative_to(repository).as_posix())
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names)) and set(names) == needed


def test_its_metadata(wheel, repository):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    from npt import __version__

    assert f"\nVersion: {__version__}\n" in text and "\nRequires-Python: >=3.10\n" in text
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "npt = npt.__main__:main" in wheel.read(entry).decode()


def test_what_plugins_do_not_need_is_an_extra():
    required = importlib.metadata.requires("npt-clip") or []
    needed = [line for line in required if "extra ==" not in line]
    assert any(line.startswith("torch") for line in needed)
    for heavy in ("matplotlib", "pandas", "tensorboard", "scipy", "submitit", "pytest", "mypy"):
        assert not any(line.startswith(heavy) for line in needed)
