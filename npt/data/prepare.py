"""Downloads a data set into its folder below the data root, atomically.

Files are downloaded and unpacked in `.<folder>.preparing`, beside the data set's folder and on the
same disk, and then renamed into place. If the process is killed, the next one continues with the
files in that folder. Existing files of the data set are never changed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from npt.data.sources import Piece, pieces
from npt.data.unpack import BadArchive, allowance, unpack
from npt.datasets.base import read_json
from npt.datasets.catalog import CATALOG, Row
from npt.download import digest, fetch
from npt.errors import NPTError
from npt.files import locked, read_record, write_record

RECORD = "prepared.json"  # addresses, sizes and checksums of the downloads of a data set


def prepare(row: Row, root: Path) -> list[NPTError]:
    """Download the missing pieces of a data set; return the errors, in the catalog's order."""
    folder = (root / row.folder).resolve()  # it may be a link to another disk
    work = folder.parent / f".{folder.name}.preparing"
    problems: list[NPTError] = []
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", f"preparing {row.name} in {work}"):
        for piece in pieces(row):
            missing = {m: p for m, p in piece.places.items() if not os.path.lexists(root / p)}
            if not missing:
                print(f"{', '.join(piece.places.values())}: already there")
                continue
            try:
                _get(piece, missing, row, root, work)
            except NPTError as error:
                problems.append(error)
        if not problems:
            shutil.rmtree(work)
    return problems


def _get(piece: Piece, missing: dict[str, str], row: Row, root: Path, work: Path) -> None:
    """Download a piece and move its `missing` files (member -> path) into place."""
    places = ", ".join(missing.values())
    if piece.by_hand:
        raise NPTError(f"{places} of {row.name} cannot be downloaded: {piece.by_hand}.")
    file = work / piece.file
    copy = _existing_copy(piece, root)
    if copy:
        print(f"{places}: a copy of {copy}")
        shutil.copyfile(copy, file)
    else:
        print(f"{places}: from {piece.url}", flush=True)
        fetch(piece.url, file, piece.checksum)
    entry = {
        "address": piece.url,
        "bytes": file.stat().st_size,
        "checksum": piece.checksum or f"none published; downloaded with sha256:{digest(file)}",
    }
    if piece.archive:
        ready = work / "unpacked"
        try:
            _clear(work)  # incomplete files of a killed process
            _unpack(piece, file, ready, missing)
        except BaseException as error:
            _clear(work)  # free the disk, which may be full
            if isinstance(error, BadArchive) and not piece.checksum:
                file.unlink()  # the download may be wrong: the next run repeats it
            raise
    else:
        ready = work
        _check_form(file, piece)
    if not piece.checksum and not copy:
        print(f"  no checksum is published for {piece.file}: its length and format were checked")
    if hasattr(os, "sync"):
        os.sync()  # so that a power failure cannot leave empty files under final names
    for member, place in missing.items():
        target = (root / row.folder).resolve() / Path(place).relative_to(row.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(ready / member if piece.archive else file, target)
    _record((root / row.folder).resolve() / RECORD, missing, entry)
    if piece.archive:
        _clear(work)
        file.unlink()


def _clear(work: Path) -> None:
    """Remove the unpacked files that were not moved into place."""
    for name in ("unpacked", "nested"):
        shutil.rmtree(work / name, ignore_errors=True)


def _unpack(piece: Piece, file: Path, ready: Path, missing: dict[str, str]) -> None:
    if piece.nested:
        outer = ready.with_name("nested")
        unpack(file, outer, [piece.nested])
        if not (outer / piece.nested).is_file():
            raise BadArchive(f"{file} does not contain {piece.nested}: is it the right archive?")
        allowed = allowance(file.stat().st_size)
        unpack(outer / piece.nested, ready, list(missing), allowed)
    else:
        unpack(file, ready, list(missing))
    for member in missing:
        if not (ready / member).exists():
            raise BadArchive(f"{file} does not contain {member}: is it the right archive?")


def _existing_copy(piece: Piece, root: Path) -> Path | None:
    """The same plain file of another data set below the root (ImageNet's class names), if any."""
    for row in CATALOG.values() if not piece.archive else ():
        for other in pieces(row):
            place = root / next(iter(other.places.values()))
            if other.url == piece.url and place.is_file():
                return place
    return None


def _check_form(file: Path, piece: Piece) -> None:
    """Check the format of a plain file without a checksum. Remove it and raise if it is wrong."""
    if piece.checksum:
        return
    try:
        if file.suffix == ".json":
            content = read_json(file)
            valid = isinstance(content, dict) and (
                not file.name.startswith("split_") or {"train", "val", "test"} <= set(content)
            )
        else:  # ImageNet's class names
            lines = file.read_text(encoding="utf-8").splitlines()
            valid = bool(lines) and all(re.match(r"n\d{8} \S", line) for line in lines)
    except ValueError:
        valid = False
    if not valid:
        file.unlink()
        raise NPTError(
            f"the file from {piece.url} is not a valid {file.name}: download it with a browser."
        )


def _record(path: Path, missing: dict[str, str], entry: dict[str, object]) -> None:
    """Add an entry for each file that was moved into place. A damaged record is replaced."""
    try:
        record = read_record(path)
    except NPTError:
        record = {}
    write_record(path, {**record, **{place: entry for place in missing.values()}})
