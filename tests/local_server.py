"""A web server on 127.0.0.1 that misbehaves as told, for the tests of downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Page:
    """One file of the server.

    `drops` holds, for one request each, after how many bytes the connection is cut (None: not);
    `answers` the statuses of the first requests; `headers` what they carry.
    """

    body: bytes
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    length: bool = True
    drops: list[int | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    location: str = ""
    pause: float = 0.0  # seconds between pieces of 16 KiB


@dataclass
class Site:
    """The files by path, the requests that came, and the address."""

    base: str
    pages: dict[str, Page] = field(default_factory=dict)
    log: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header)

    def put(self, path: str, body: bytes, **settings: object) -> str:
        self.pages[path] = Page(body, **settings)  # type: ignore[arg-type]
        return self.base + path

    def requests(self, path: str) -> list[str | None]:
        return [span for name, span in self.log if name == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        body = f"answer {status}".encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        target = unquote(self.path)
        path = target if target in self.site.pages else target.split("?")[0]
        span = self.headers.get("Range")
        self.site.log.append((path, span))
        page = self.site.pages.get(path)
        if page is None:
            self._plain(404, {})
            return
        if page.answers:
            self._plain(page.answers.pop(0), page.headers)
            return
        if page.location:
            self._plain(302, {"Location": page.location})
            return
        start = 0
        condition = self.headers.get("If-Range")
        fresh = condition is None or condition in (page.etag, page.modified)
        if span and page.ranges and fresh:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(page.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(page.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            end = len(page.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(page.body)}")
        else:
            self.send_response(200)
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.modified:
            self.send_header("Last-Modified", page.modified)
        if page.length:
            self.send_header("Content-Length", str(len(page.body) - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        body = page.body[start:]
        cut = page.drops.pop(0) if page.drops else None
        if cut is not None:
            body = body[:cut]
        try:
            for at in range(0, len(body), 1 << 14):
                self.wfile.write(body[at : at + (1 << 14)])
                if page.pause:
                    time.sleep(page.pause)
            self.wfile.flush()
        except OSError:  # the client was killed
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # killed clients are part of the tests


@contextmanager
def serve() -> Iterator[Site]:
    """Run a server in a thread for the length of a ``with`` block."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    handler.site = site  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
