"""A host of files on the loopback, with the faults that real hosts have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Host:
    """`files` are what it serves; the other fields, by path, what goes wrong with them.

    cuts: after how many bytes of an answer the connection ends, one for each request
    holds: as `cuts`, but the connection stays open and silent until `release`
    etags: the version that it names; without one it names none
    no_ranges: paths for which it ignores Range headers
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, range
    release: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextmanager
def serving() -> Iterator[Host]:
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.lstrip("/").partition("?")[0]
            wanted = self.headers.get("Range", "")
            host.asked.append((path, wanted))
            if host.statuses.get(path):
                return self.send_error(host.statuses[path].pop(0))
            if path in host.redirects:
                self.send_response(302)
                self.send_header("Location", host.redirects[path])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if path not in host.files:
                return self.send_error(404)
            content, etag = host.files[path], host.etags.get(path, "")
            same = self.headers.get("If-Range") in (None, etag)
            partly = bool(wanted) and same and path not in host.no_ranges
            first, _, last = wanted[6:].partition("-") if partly else ("0", "", "")
            start, end = int(first), int(last) + 1 if last else len(content)
            if start >= len(content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            body = content[start:end]
            self.send_response(206 if partly else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", host.types.get(path, "application/octet-stream"))
            if partly:
                place = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
                self.send_header("Content-Range", place)
            if etag:
                self.send_header("ETag", etag)
            self.end_headers()
            if path in host.holds:
                self.wfile.write(body[: host.holds[path]])
                self.wfile.flush()
                host.release.wait(60)
            elif host.cuts.get(path):
                self.wfile.write(body[: host.cuts[path].pop(0)])
            else:
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    host.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.release.set()
        server.shutdown()
        server.server_close()
