"""From the sources in a row of the catalog to the files that are downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from npt.datasets.catalog import DRIVE, Row, Source


@dataclass(frozen=True)
class Piece:
    """One download of a data set, with paths below the data root.

    file: name of the downloaded file
    places: archive member (of a plain file: its name) -> path below the data root
    checksum, nested, by_hand: as in `Source`
    """

    url: str
    file: str
    places: Mapping[str, str]
    archive: bool = False
    checksum: str = ""
    nested: str = ""
    by_hand: str = ""


def pieces(row: Row) -> list[Piece]:
    """The downloads of a data set, in the order of the catalog."""
    return [_piece(row.folder, source) for source in row.sources]


def _piece(folder: str, source: Source) -> Piece:
    archive = bool(source.members)
    places = source.members or {PurePosixPath(source.place).name: source.place}
    url = source.url or source.address
    file = PurePosixPath(url if archive else source.place).name
    if url.startswith(DRIVE):  # a web page whose address does not contain the file's name
        identity = url.removeprefix(DRIVE).partition("/")[0]
        url = (
            f"https://drive.usercontent.google.com/download?id={identity}&export=download&confirm=t"
        )
        if archive:
            file = f"{PurePosixPath(next(iter(places.values()))).name}.zip"
    return Piece(
        url=url,
        file=file,
        places={member: f"{folder}/{place}" for member, place in places.items()},
        archive=archive,
        checksum=source.checksum,
        nested=source.nested,
        by_hand=source.by_hand,
    )
