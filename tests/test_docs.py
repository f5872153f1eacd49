"""The pages: their links lead somewhere, and what they name exists."""

import ast
import difflib
import re
import runpy
from pathlib import Path

import pytest
import yaml

from npt.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, name


def test_version_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_names_the_keys_of_npt():
    from npt.config import KEYS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for key in KEYS:
        if key.startswith(("TRAINER.NPT.", "MODEL.", "DATASET.")):
            assert key in text or f"`{key.rpartition('.')[2]}`" in text, key
    assert "NPT_TRACEBACK=1" in text


# --------------------------------------------------------------------------- config keys
KEY = re.compile(
    r"\b(?:TRAINER|DATASET|DATALOADER|INPUT|MODEL|OPTIM|TRAIN|TEST)(?:\.[A-Z_0-9]+)+\b"
)
OF_EXAMPLES = {  # keys of the methods and terms that a page tells how to add
    *("TRAINER.SHIFT", "TRAINER.SHIFT.CTX_INIT", "TRAINER.SHIFT.PREC"),
    *("TRAINER.NPT.W_SPREAD", "TRAINER.NPT.W_DRIFT"),
}


def test_the_page_of_config_keys_is_what_the_code_says(python, tmp_path):
    made, page = tmp_path / "config.md", ROOT / "docs" / "config.md"
    done = python("scripts/config_page.py", made)
    assert done.returncode == 0, done.stderr  # names the keys that have no meaning, and what to do
    lines = [file.read_text(encoding="utf-8").splitlines() for file in (page, made)]
    assert lines[0] == lines[1], (
        "docs/config.md is not what the code says: run `python scripts/config_page.py` and commit "
        "docs/config.md. What differs:\n"
        + "\n".join(difflib.unified_diff(*lines, n=0, lineterm=""))
    )


def test_a_key_without_a_meaning_is_named_with_what_to_do(python, clone, tmp_path):
    (clone / "scripts").mkdir()
    for name in ("config_page.py", "_checkout.py"):
        (clone / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    with (clone / "npt" / "terms.py").open("a") as file:
        file.write('config.add(f"{NODE}.SECRET", config.Key(1))\n')
    done = python("scripts/config_page.py", tmp_path / "config.md", cwd=clone)
    assert done.returncode == 2 and not (tmp_path / "config.md").exists()
    assert "TRAINER.NPT.SECRET has no meaning" in done.stderr
    assert "second argument" in done.stderr and "scripts/config_page.py" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_that_a_page_names_exist(page):
    named = set(KEY.findall(page.read_text(encoding="utf-8"))) - OF_EXAMPLES
    documented = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for key in named:
        assert f"`{key}`" in documented or f"`{key}." in documented, (
            f"{page.name} names {key}, which is no config key (docs/config.md)"
        )


EMBEDDED = ROOT / "npt" / "engine" / "embedded"


def names_read(*folders: Path) -> set[str]:
    """The names that sources read as attributes or as texts; the engine is a folder of its own."""
    files = [file for folder in folders for file in folder.rglob("*.py")]
    nodes = [
        node
        for file in files
        if folders == (EMBEDDED,) or not file.is_relative_to(EMBEDDED)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    ]
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return found | {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def test_keys_of_hosts_only_are_those_that_nothing_of_npt_reads():
    """By the last part of a key, so that keys with the same last part count as one."""
    keys = runpy.run_path(str(EMBEDDED / "dassl" / "config" / "defaults.py"))["KEYS"]
    ours = names_read(*(ROOT / name for name in ("npt", "trainers", "datasets")))
    engine = names_read(EMBEDDED)
    last = {path: path.rpartition(".")[2] for path in keys}
    shared = {last[path] for path, row in keys.items() if not row.host}
    for path, row in keys.items():
        if not row.host:
            assert last[path] in ours | engine, f"nothing reads {path}: give its row host=True"
        elif last[path] not in shared:
            assert last[path] not in ours, f"{path} is read here: its row must not have host=True"
