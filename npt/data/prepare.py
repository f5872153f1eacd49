"""Downloads a data set and puts it in its place below the data root, whole or not at all.

Everything happens in a folder beside the data set's own, `.<folder>.preparing`, on the same disk:
what is finished is renamed into place, and what a killed process leaves there is continued by the
next. What the data set's folder already has is never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from npt.data.sources import Piece, pieces
from npt.data.unpack import BadArchive, unpack
from npt.datasets.catalog import CATALOG, Row
from npt.download import digest, fetch
from npt.errors import NPTError
from npt.files import locked, write_json

RECORD = "prepared.json"  # what was fetched for a data set, and against what it was checked


def prepare(row: Row, root: Path) -> list[NPTError]:
    """Gets what the data set lacks; returns what could not be got, in the catalog's order."""
    folder = (root / row.folder).resolve()  # which may be a link of the user's to another disk
    work = folder.parent / f".{folder.name}.preparing"
    problems: list[NPTError] = []
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", f"preparing {row.name} in {work}"):
        for piece in pieces(row):
            lacking = {i: p for i, p in piece.goes.items() if not os.path.lexists(root / p)}
            if not lacking:
                print(f"{', '.join(piece.goes.values())}: is there")
                continue
            try:
                _get(piece, lacking, row, root, work)
            except NPTError as error:
                problems.append(error)
        if not problems:
            shutil.rmtree(work)
    return problems


def _get(piece: Piece, lacking: dict[str, str], row: Row, root: Path, work: Path) -> None:
    """Fetch a piece and move what is `lacking` of it into place."""
    places = ", ".join(lacking.values())
    if piece.by_hand:
        raise NPTError(f"{places} of {row.name} cannot be fetched: {piece.by_hand}.")
    file = work / piece.file
    known = _elsewhere(piece, root)
    if known:
        print(f"{places}: a copy of {known}")
        shutil.copyfile(known, file)
    else:
        print(f"{places}: from {piece.url}", flush=True)
        fetch(piece.url, file, piece.checksum)
    entry = {
        "address": piece.url,
        "bytes": file.stat().st_size,
        "checksum": piece.checksum or f"none known; it came with sha256:{digest(file)}",
    }
    if piece.archive:
        ready = work / "unpacked"
        try:
            _clear(work)  # half of it, from a process that was killed
            _unpack(piece, file, ready, lacking)
        except BaseException as error:
            _clear(work)  # an archive that fills the disk shall not keep it
            if isinstance(error, BadArchive) and not piece.checksum:
                file.unlink()  # nothing says that another download would be the same
            raise
    else:
        ready = work
        _check_form(file, piece)
    if not piece.checksum and not known:
        print(f"  no checksum is known for {piece.file}: its length and form were checked")
    if hasattr(os, "sync"):
        os.sync()  # so that no power failure leaves empty files under final names
    for inside, place in lacking.items():
        target = (root / row.folder).resolve() / Path(place).relative_to(row.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(ready / inside if piece.archive else file, target)
    _record((root / row.folder).resolve() / RECORD, lacking, entry)
    if piece.archive:
        _clear(work)
        file.unlink()


def _clear(work: Path) -> None:
    """Remove what came out of an archive and is in no place."""
    for name in ("unpacked", "nested"):
        shutil.rmtree(work / name, ignore_errors=True)


def _unpack(piece: Piece, file: Path, ready: Path, lacking: dict[str, str]) -> None:
    if piece.nested:
        outer = ready.with_name("nested")
        unpack(file, outer, [piece.nested])
        if not (outer / piece.nested).is_file():
            raise BadArchive(f"{file} holds no {piece.nested}: is it the right archive?")
        unpack(outer / piece.nested, ready, list(lacking))
    else:
        unpack(file, ready, list(lacking))
    for inside in lacking:
        if not (ready / inside).exists():
            raise BadArchive(f"{file} holds no {inside}: is it the right archive?")


def _elsewhere(piece: Piece, root: Path) -> Path | None:
    """The same plain file, where another data set below the root has it (ImageNet's names)."""
    for row in CATALOG.values() if not piece.archive else ():
        for other in pieces(row):
            place = root / next(iter(other.goes.values()))
            if other.url == piece.url and place.is_file():
                return place
    return None


def _check_form(file: Path, piece: Piece) -> None:
    """What can be said of a plain file without a checksum. Removes it where it is another."""
    if piece.checksum:
        return
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            content = json.loads(text)
            fit = isinstance(content, dict) and (
                not file.name.startswith("split_") or {"train", "val", "test"} <= set(content)
            )
        else:  # ImageNet's names
            fit = all(re.match(r"n\d{8} \S", line) for line in text.splitlines()) and bool(text)
    except ValueError:
        fit = False
    if not fit:
        file.unlink()
        raise NPTError(f"{piece.url} sent something that is no {file.name}: fetch it by hand.")


def _record(path: Path, lacking: dict[str, str], entry: dict[str, object]) -> None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    write_json(path, {**record, **{place: entry for place in lacking.values()}})
