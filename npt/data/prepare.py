"""Downloads a data set into its folder below the data root, atomically.

Files are downloaded and unpacked in `.<folder>.preparing`, beside the data set's folder and on the
same disk, and then renamed into place. If the process is killed, the next one continues with the
files in that folder. Existing files of the data set are never changed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from npt.data import mirror
from npt.data.sources import Piece, pieces
from npt.data.unpack import BadArchive, allowance, unpack
from npt.datasets.base import read_json
from npt.datasets.catalog import CATALOG, Mirror, Row
from npt.download import Unavailable, digest, fetch, has_checksum
from npt.errors import NPTError
from npt.files import locked, read_record, write_record
from npt.text_file import read_lines

RECORD = "prepared.json"  # addresses, sizes and checksums of the downloads of a data set
NONE_OF_A_PART = "a part of an archive; its CRC in there and its form were checked"


def prepare(row: Row, root: Path) -> list[NPTError]:
    """Download the missing pieces of a data set; return the errors, in the catalog's order.

    What its own hosts do not give is taken from the mirror of the data set, if there is one.
    """
    folder = (root / row.folder).resolve()  # it may be a link to another disk
    work = folder.parent / f".{folder.name}.preparing"
    problems: dict[int, NPTError] = {}  # by the number of the piece
    refused: dict[int, tuple[Piece, dict[str, str]]] = {}
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", f"preparing {row.name} in {work}"):
        for number, piece in enumerate(pieces(row)):
            missing = {m: p for m, p in piece.places.items() if not os.path.lexists(root / p)}
            if not missing:
                print(f"{', '.join(piece.places.values())}: already there")
                continue
            try:
                _get(piece, missing, row, root, work)
            except NPTError as error:
                problems[number] = error
                if isinstance(error, Unavailable):
                    refused[number] = piece, missing
        if refused and row.mirror:
            try:
                for number in _from_mirror(row.mirror, row, root, work, refused):
                    del problems[number]
            except NPTError as error:
                print(f"  {error}")
                problems[len(row.sources)] = error
        if not problems:
            shutil.rmtree(work)
    return list(problems.values())


def _get(piece: Piece, missing: dict[str, str], row: Row, root: Path, work: Path) -> None:
    """Download a piece and move its `missing` files (member -> path) into place."""
    places = ", ".join(missing.values())
    if piece.by_hand:
        raise Unavailable(f"{places} of {row.name} cannot be downloaded: {piece.by_hand}.")
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
    found = {place: ready / member if piece.archive else file for member, place in missing.items()}
    _put_into_place(row, root, found, entry)
    if piece.archive:
        _clear(work)
        file.unlink()


def _from_mirror(
    source: Mirror,
    row: Row,
    root: Path,
    work: Path,
    refused: dict[int, tuple[Piece, dict[str, str]]],
) -> Iterator[int]:
    """Take pieces from the mirror: the numbers of those that are in place then, one by one.

    refused: number -> the piece, and its missing files (member -> path)
    """
    ready = work / "unpacked"
    wanted = [place for _, missing in refused.values() for place in missing.values()]
    print(f"{', '.join(wanted)}: from the mirror {source.url}", flush=True)
    _clear(work)  # incomplete files of a killed process
    try:
        checksum = NONE_OF_A_PART
        if all(_is_plain(piece) for piece, _ in refused.values()):
            mirror.get_files(source, wanted, ready)
        else:
            checksum = f"of its archive: {mirror.get_folders(source, work, wanted, ready)}"
        for number, (piece, missing) in refused.items():
            found = {place: ready / place for place in missing.values()}
            if not all(path.exists() for path in found.values()):
                print(f"  {', '.join(found)}: not in the mirror")
                continue
            for path in found.values() if _is_plain(piece) else ():
                _check_copy(path, piece, source)
            size = sum(path.stat().st_size for path in found.values() if path.is_file())
            _put_into_place(
                row, root, found, {"address": source.url, "bytes": size, "checksum": checksum}
            )
            yield number
    finally:
        _clear(work)


def _check_copy(file: Path, piece: Piece, source: Mirror) -> None:
    """Unavailable if a plain file of the mirror is not the one that its own host publishes."""
    if piece.checksum and not has_checksum(file, piece.checksum):
        raise Unavailable(f"the {file.name} in {source.url} does not have the {piece.checksum}.")
    _check_form(file, piece)


def _is_plain(piece: Piece) -> bool:
    """Whether it is a small file, such as a split file, that can be read out of an archive."""
    return not piece.archive and not piece.by_hand


def _put_into_place(row: Row, root: Path, found: dict[str, Path], entry: dict[str, object]) -> None:
    """Move complete files (path below the data root -> where they are now), and record them."""
    if hasattr(os, "sync"):
        os.sync()  # so that a power failure cannot leave empty files under final names
    for place, path in found.items():
        target = (root / row.folder).resolve() / Path(place).relative_to(row.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    _record((root / row.folder).resolve() / RECORD, list(found), entry)


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
            lines = read_lines(file)
            valid = bool(lines) and all(re.match(r"n\d{8} \S", line) for line in lines)
    except ValueError:
        valid = False
    if not valid:
        file.unlink()
        raise Unavailable(
            f"the file from {piece.url} is not a valid {file.name}: download it with a browser."
        )


def _record(path: Path, places: list[str], entry: dict[str, object]) -> None:
    """Add an entry for each file that was moved into place. A damaged record is replaced."""
    try:
        record = read_record(path)
    except NPTError:
        record = {}
    write_record(path, {**record, **{place: entry for place in places}})
