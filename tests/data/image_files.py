"""Image files of kinds that Pillow does not write."""

import struct
import zlib

import numpy as np


def write_png(path, values, colour, significant=None):
    """A PNG of 16 bits, with a chunk sBIT if asked for, neither of which Pillow writes."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + (chunk(b"sBIT", bytes(significant)) if significant else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def write_tiff(path, values, bits=16, sample_format=1, photometric=1, order="<", **tags):
    """A TIFF without compression, of any depth and number of channels."""
    values = np.asarray(values)
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = {
        **{256: (4, (width,)), 257: (4, (height,)), 258: (3, (bits,) * channels), 259: (3, (1,))},
        **{262: (3, (photometric,)), 273: (4, (8,)), 277: (3, (channels,)), 278: (4, (height,))},
        **{279: (4, (len(content),)), 339: (3, (sample_format,) * channels)},
        **{int(name[1:]): value for name, value in tags.items()},
    }
    start = 8 + len(content)
    directory, more = struct.pack(order + "H", len(entries)), b""
    after = start + 2 + 12 * len(entries) + 4
    for tag, (kind, numbers) in sorted(entries.items()):
        form = {3: "H", 4: "I", 8: "h", 9: "i", 11: "f", 12: "d"}[kind]
        data = struct.pack(order + form * len(numbers), *numbers)
        if len(data) > 4:
            data, more = struct.pack(order + "I", after + len(more)), more + data
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    end = struct.pack(order + "I", 0)
    path.write_bytes(mark + struct.pack(order + "I", start) + content + directory + end + more)
    return path
