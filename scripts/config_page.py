"""Writes docs/config.md: every config key with its default, its allowed values and its meaning.

    python scripts/config_page.py          # after a key has been added or changed

Everything is said in the tables of keys themselves: `KEYS` of npt/config.py and of the embedded
engine (npt/engine/embedded/dassl/config/defaults.py), `METHODS` of trainers/__init__.py, and the
rows of npt/terms.py and npt/remedies.py.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401

from npt import config, remedies, terms, trainers  # noqa: F401  the last three add keys
from npt.checks import LARGEST, LARGEST_WHOLE
from npt.engine import EMBEDDED
from npt.errors import NPTError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
HEAD = """# Config keys

Made by `python scripts/config_page.py` from the tables of keys in the code; do not edit it by hand.

Later wins: the defaults below, the file of the data set (`--dataset-config-file`), the file of the
trainer (`--config-file`), flags, and `KEY VALUE` pairs at the end of a command. A key that does not
exist and a value that is not allowed are errors that say what to write instead. `configs/` has the
papers' settings, so that a run needs few keys; its `log.txt` and `result.json` have all of them.

A number may be as large as 1e38, and a whole number as 2147483647, where nothing else is said.
*Host*: no trainer or data set of this package reads the key; those of another repository may
([plugin.md](plugin.md)). Trainers of your own add keys: [terms.md](terms.md) and
[CONTRIBUTING.md](../CONTRIBUTING.md).
"""
COLUMNS = "| key | default | allowed | meaning |\n|---|---|---|---|"
TITLES = {
    "": "General",
    "INPUT": "Images",
    "DATASET": "Data set",
    "DATALOADER": "Batches",
    "MODEL": "Model",
    "OPTIM": "Optimizer and learning rate",
    "TRAIN": "Training",
    "TEST": "Test",
    "TRAINER": "Trainer",
    "TRAINER.NPT": "NPT: the terms, and remedies for long tails",
}
UNBOUNDED = [
    f", {bound}"
    for limit in (LARGEST, LARGEST_WHOLE)
    for bound in (f"-{limit} or more", f"at most {limit}")
]


def all_keys() -> dict[str, tuple[config.Key, bool]]:
    """Every key, and whether only hosts read it; what npt says of a key of the engine wins."""
    engine = runpy.run_path(str(EMBEDDED / "dassl" / "config" / "defaults.py"))["KEYS"]
    keys = {path: (config.of_engine(row), row.host) for path, row in engine.items()}
    return keys | {path: (key, path in keys and keys[path][1]) for path, key in config.KEYS.items()}


def page(keys: dict[str, tuple[config.Key, bool]]) -> str:
    """The text of the page. NPTError if a key has no meaning."""
    nameless = [path for path, (key, _) in keys.items() if not key.meaning]
    if nameless:
        raise NPTError(
            f"{', '.join(nameless)} has no meaning: say in one plain sentence what it does, as the "
            "second argument of its Key(...), or as the argument `meaning` of its Term or Remedy; "
            "then python scripts/config_page.py"
        )
    nodes = list(dict.fromkeys(map(node_of, keys)))
    tables: dict[str, list[str]] = {}
    for path in sorted(keys, key=lambda path: nodes.index(node_of(path))):
        tables.setdefault(table_of(path), []).append(line(path, *keys[path]))
    texts = [
        "\n".join([f"\n## {TITLES.get(table, table)}\n", COLUMNS, *lines, ""])
        for table, lines in tables.items()
    ]
    return HEAD + "".join(texts)


def node_of(path: str) -> str:
    return path.rpartition(".")[0]


def table_of(path: str) -> str:
    """DATALOADER for a key of DATALOADER.TRAIN_X; each node of TRAINER has a table of its own."""
    node = node_of(path)
    return node if node.startswith("TRAINER.") else node.partition(".")[0]


def line(path: str, key: config.Key, host: bool) -> str:
    """The row of a key."""
    default = repr(key.default).replace("'", '"')
    meaning = f"*Host*: {key.meaning}" if host else key.meaning
    if key.acts_with is not None:
        other, needed = key.acts_with
        meaning += f"; only with `{other}` {in_short(needed.allowed)}"
    cells = (f"`{path}`", f"`{default}`", in_short(key.allowed()), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def in_short(allowed: str) -> str:
    for bound in UNBOUNDED:
        allowed = allowed.replace(bound, "")
    return allowed.replace("a finite number", "a number").replace("text in UTF-8", "text")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=PAGE, help="default: docs/config.md")
    file = parser.parse_args(argv).file
    try:
        file.write_text(page(all_keys()), encoding="utf-8")
    except NPTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
