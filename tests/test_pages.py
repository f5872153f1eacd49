"""Every command in README.md, CONTRIBUTING.md and docs/ is run, or its arguments are parsed.

What a mark before a block means is said in tests/data/pages_kit.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pages_kit import PAGES, ROOT, Block, blocks_of, inline_commands, placed, quoted, without_dots

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if block.is_command]
INDENTED = re.compile(r"^    (\$ |python |bash |npt |pip |sudo |export |[A-Z]+=\S+ )", re.M)
UNFINISHED = (  # complaints about a sentence that names a program without its arguments
    *("arguments are required", "expected one argument", "a verb is missing"),
    "FileNotFoundError",  # a program that the page tells how to write
    *("the first argument must be a script", "there is no script"),  # of a host
)
WORD_END, COMMAND_END = "\x1f", "\x1e"


def of(how: str) -> list:
    """The blocks with that mark, as parameters of a test."""
    return [
        pytest.param(block, id=block.place, marks=[getattr(pytest.mark, x) for x in block.markers])
        for block in COMMANDS
        if block.how == how
    ]


# --------------------------------------------------------------------------- folders to run in
def my_images(folder: Path) -> None:
    """Pictures as a phone, a scanner and a web page make them, in folders of three classes.

    Beside my_images: new_images (the same classes), holiday, scans, photo.jpg, classes.txt.
    """
    classes = {"green_leaf": (24, "green"), "brick wall": (12, "brown"), "Sea": (6, "blue")}
    for name, (count, colour) in classes.items():
        pictures(folder / "my_images" / name, count, colour)
        pictures(folder / "new_images" / name, 2, colour)
    pictures(folder / "holiday" / "at the sea", 4, "blue")
    shutil.copy(folder / "my_images" / "Sea" / "IMG_0000.jpg", folder / "holiday" / "1.jpg")
    shutil.copy(folder / "holiday" / "1.jpg", folder / "photo.jpg")
    pictures(folder / "scans", 4, "green")
    (folder / "classes.txt").write_text("a sunset\na beach\n")
    (folder / "my_data.yaml").write_text('DATASET: {NAME: "CustomFolder", ROOT: "my_images"}\n')


def pictures(folder: Path, count: int, colour: str) -> None:
    """Noise with a disc of a colour, in several sizes, modes and formats."""
    import numpy as np
    from PIL import Image, ImageDraw

    kinds = [  # ending, size, mode
        ("jpg", (400, 300), "RGB"),
        ("JPG", (300, 400), "RGB"),
        ("png", (210, 297), "L"),
        ("png", (64, 64), "P"),
        ("webp", (320, 180), "RGB"),
        ("tif", (210, 297), "CMYK"),
    ]
    folder.mkdir(parents=True)
    random = np.random.default_rng(zlib.crc32(f"{folder.parent.name}/{folder.name}".encode()))
    for k in range(count):
        ending, (width, height), mode = kinds[k % len(kinds)]
        noise = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        side = min(width, height) // 2
        x, y = map(int, random.integers(0, side, 2))
        ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=colour)
        exif = Image.Exif()
        exif[0x0112] = 6 if ending == "JPG" else 1  # a phone that was held upright
        image.convert(mode).save(folder / f"IMG_{k:04d}.{ending}", exif=exif)


def paper_data(folder: Path) -> None:
    """Folders of the paper's fifteen data sets, with a few small images each."""
    from layouts import BUILDERS, build

    for name in BUILDERS:
        build(name, folder / "DATA")


FIXTURES: dict[str, Callable[[Path], None]] = {"my_images": my_images, "DATA": paper_data}


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


PYTHON = """case "$*" in
  "-m pip install"*) ;;  # nothing is installed
  *"print(sys.prefix)"*) echo "$VIRTUAL_ENV" ;;  # whose stamps say what is installed
  {others}
esac"""


class Workplace:
    """Runs blocks in copies of the repository, with this Python in an active environment."""

    def __init__(self, home: Path, python: str, programs: dict[str, str]):
        self.home, self.states = home, {}
        environment, bin = home / "environment", home / "environment" / "bin"
        program(bin / "python", PYTHON.format(others=python))
        program(bin / "npt", f'exec {bin / "python"} -m npt "$@"')
        for name, text in programs.items():
            program(bin / name, text)
        kept = {k: v for k, v in os.environ.items() if k not in ("DATA", "OUT", "PYTHONPATH")}
        self.environment = {
            **kept,
            "VIRTUAL_ENV": str(environment),
            "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home / "user"),
            "OMP_NUM_THREADS": "1",
        }

    def fresh(self) -> Path:
        """A new copy of the repository, as `git clone` and the installation leave it."""
        from tree_kit import copy_tree

        folder = Path(tempfile.mkdtemp(dir=self.home))
        copy_tree(folder)
        for name in ("scripts", "benchmarks", "docs", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "*.npz")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        program(folder / ".venv" / "bin" / "activate", ":")
        return folder

    def prepared(self, block: Block) -> Path:
        """A folder with all that the mark of a block asks for, and the files on its page."""
        names = block.named("after")
        if names:
            state, folder = self.state(names[0]), Path(tempfile.mkdtemp(dir=self.home))
            shutil.copytree(state, folder, symlinks=True, dirs_exist_ok=True)
        else:
            folder = self.fresh()
        for name in block.named("with"):
            FIXTURES[name](folder)
        for file in block.before:
            if re.fullmatch(r"file=\S+", file.info):
                (folder / file.info.removeprefix("file=")).write_text(file.text)
        return folder

    def state(self, name: str) -> Path:
        """The folder that the block `as NAME` leaves."""
        if name not in self.states:
            (block,) = (x for x in COMMANDS if x.how == "run" and name in x.named("as"))
            self.run(block)
        return self.states[name]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Run a block. What others go on from is run once."""
        folder = self.prepared(block)
        done = self.call(block.language, block.code, folder)
        for name in block.named("as"):
            self.states[name] = folder
        assert done.returncode == 0, f"{block.place}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def call(self, language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        file = self.home / f"block.{language}"
        file.write_text(code)
        command = ["bash", "-euo", "pipefail"] if language == "bash" else ["python"]
        return subprocess.run(
            [*command, str(file)],
            cwd=folder,
            env={**self.environment, "PYTHONPATH": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    real = f'*) exec {sys.executable} "$@" ;;'
    return Workplace(tmp_path_factory.mktemp("pages"), real, {})


# --------------------------------------------------------------------------- blocks that are run
@pytest.mark.parametrize("block", of("run"))
def test_a_block_runs_and_prints_what_its_page_says(workplace, block):
    done = workplace.run(block)
    assert "Traceback (most recent call last)" not in done.stdout + done.stderr
    assert placed(block.printed, done.stdout), f"{block.place} does not print that:\n{done.stdout}"


@pytest.mark.parametrize("block", of("covered by"))
def test_the_test_that_covers_a_block_exists(block):
    file, _, name = block.what.partition("::")
    assert (ROOT / file).is_file(), f"{block.place}: there is no {file}"
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{block.place}: {name}"


# --------------------------------------------------------------------------- blocks that are parsed
class Parsing(Workplace):
    """Runs shell code with programs that do nothing; what Python is called with is kept."""

    def __init__(self, home: Path):
        self.log = home / "log"
        keep = "printf '%s\\037' \"$@\"; printf '\\036'"
        write = f"-c*) ;;\n  *) {{ {keep}; }} >> {self.log} ;;"
        through, clone = 'exec "$@"', 'test "$1" != clone || mkdir -p "$(basename "$2" .git)"'
        nothing = {"tee": "cat", **dict.fromkeys(("pip", "scontrol", "sbatch", "wandb"), ":")}
        super().__init__(home, write, {"sudo": through, "srun": through, "git": clone, **nothing})
        self.folder = self.fresh()
        for make in FIXTURES.values():
            make(self.folder)
        (home / "user").mkdir()
        shutil.copytree(self.folder / "DATA", home / "user" / "datasets")

    def calls(self, code: str) -> tuple[str, list[list[str]]]:
        """What is wrong with shell code, and the Python commands in it."""
        self.log.write_text("")
        done = self.call("bash", without_dots(code), self.folder)
        commands = self.log.read_text().split(COMMAND_END)[:-1]
        words = [command.split(WORD_END)[:-1] for command in commands]
        return done.stderr if done.returncode else "", words


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> Callable[[str], list[str]]:
    """What is wrong with shell code that is not run; all of it is parsed at once."""
    place = Parsing(tmp_path_factory.mktemp("parsing"))
    codes = [block.text for block in COMMANDS if (block.how, block.language) == ("not run", "bash")]
    codes += [command for page in PAGES for command in inline_commands(page)]
    calls = {code: place.calls(code) for code in dict.fromkeys(codes)}
    commands = [words for _, found in calls.values() for words in found]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "data" / "parse_only.py"],
        input=json.dumps(commands),
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    said = iter(json.loads(done.stdout))

    every = {}
    for code, (error, found) in calls.items():
        texts = [(quoted(words), next(said)) for words in found]
        every[code] = [error] * bool(error) + [f"{words}: {text}" for words, text in texts if text]
    return every.__getitem__


@pytest.mark.parametrize("block", of("not run"))
def test_a_block_that_is_not_run_has_arguments_that_are_accepted(complaints, block):
    if block.language == "python":
        ast.parse(block.text)
    else:
        assert complaints(block.text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_sentences_have_arguments_that_are_accepted(complaints, page):
    for command in inline_commands(page):
        found = [x for x in complaints(command) if not any(part in x for part in UNFINISHED)]
        assert found == [], f"{page.name}: `{command}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_in_blocks_that_say_bash(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        text = text.replace(block.text, "")
    found = [text.count("\n", 0, match.start()) + 1 for match in INDENTED.finditer(text)]
    assert not found, f"{page.name}: an indented command: put it into a block ```bash"
