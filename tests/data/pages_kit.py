"""The blocks of code in the pages, and what a mark before a block says of it.

A mark is an HTML comment right before the block, which a reader of the page does not see:

    <!-- not run: REASON -->          its programs only parse their arguments
    <!-- covered by: FILE::TEST -->   that test runs it
    <!-- run: WORDS, WORDS -->        run like a block without a mark, and

        slow, long           only with the slow tests, or those of minutes
        as NAME              other blocks go on from the folder that it leaves
        after NAME           goes on from the folder of that block
        with NAME            in a folder that has NAME, of FIXTURES in tests/test_pages.py
        replacing A by B     with B in place of the text A

    <!-- printed -->                  of a block without a language: the last block printed this
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MARK = re.compile(r"<!-- (not run|covered by|run): (.+) -->|<!-- (printed) -->")
FENCE = re.compile(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`((?:python|bash|npt|pip) [^`]+)`")
WORDS = re.compile(r"slow|long|(as|after|with) (\S+)|replacing (\S+) by (\S+)")


class BadMark(Exception):
    """A mark that cannot be read; says which words are allowed."""


@dataclass
class Block:
    """page: as README.md; line: of its first fence; language, info: the words after that fence

    how: "not run", "covered by", "run", "printed"; what: what the mark says after that
    """

    page: str
    line: int
    language: str
    info: str
    text: str
    how: str = "run"
    what: str = ""
    printed: str = ""  # what the page says that it prints
    before: list[Block] = field(default_factory=list)  # the blocks before it on its page

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_command(self) -> bool:
        """Whether it is a program and not a part of a file."""
        return self.language in ("bash", "python") and not self.info

    @property
    def markers(self) -> list[str]:
        """The markers of pytest for its test."""
        return [word for word in self.words if word in ("slow", "long")]

    @property
    def words(self) -> list[str]:
        """The parts of its mark `run`. BadMark for one that does not exist."""
        if self.how != "run" or not self.what:
            return []
        parts = [part.strip() for part in self.what.split(",")]
        for part in parts:
            if not WORDS.fullmatch(part):
                raise BadMark(f"{self.place}: '{part}' is not a word of a mark `run`; {__doc__}")
        return parts

    def named(self, word: str) -> list[str]:
        """What follows `as`, `after` or `with`."""
        return [part.split()[1] for part in self.words if part.split()[0] == word]

    @property
    def code(self) -> str:
        """Its text with the replacements of its mark. BadMark where that text is not there."""
        code = self.text
        for old, new in re.findall(r"replacing (\S+) by (\S+)", ", ".join(self.words)):
            if old not in code:
                raise BadMark(f"{self.place}: there is no {old} to replace")
            code = code.replace(old, new.rstrip(","))
        return code


def blocks_of(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(name, line, *match.groups(), before=list(found))
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        mark = MARK.fullmatch(above)
        if mark:
            block.how, block.what = mark[1] or mark[3], mark[2] or ""
        elif above.startswith("<!--"):
            raise BadMark(f"{block.place}: {above} is not a mark; {__doc__}")
        if block.how == "printed":
            last = [other for other in found if other.is_command][-1]
            last.printed = block.text
        found.append(block)
    return found


def inline_commands(page: Path) -> list[str]:
    """The commands in the sentences of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in INLINE.findall(text)]


def without_dots(line: str) -> str:
    """A command line without `...`, which stands for flags that do not matter there."""
    return re.sub(r"(?<!\S)\.\.\.(?!\S)", "", line)


def placed(text: str, printed: str) -> bool:
    """Whether `text` is in what was printed: the same words, and numbers within two percent."""
    wanted, found = text.split(), printed.split()
    starts = range(len(found) - len(wanted) + 1)
    return any(all(map(_same, wanted, found[k : k + len(wanted)])) for k in starts)


def _same(a: str, b: str) -> bool:
    try:
        return abs(float(a) - float(b)) <= 0.02 * abs(float(a))
    except ValueError:
        return a == b


def quoted(words: list[str]) -> str:
    return "python " + shlex.join(words)
