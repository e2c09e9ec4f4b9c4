"""A web server on 127.0.0.1 for download tests: real HTTP, with faults on demand.

Ranges are answered as RFC 9110 wants it: If-Range is honoured, an unsatisfiable range is 416.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass
class Served:
    """One file and how its server behaves."""

    content: bytes
    etag: str = '"v1"'
    ignore_range: bool = False
    cut_after: list[int] = field(default_factory=list)
    """Bytes of the body after which the connection is closed, for the first requests in turn."""
    statuses: list[int] = field(default_factory=list)
    """What the first requests are answered instead."""
    hang_after: int | None = None
    """Bytes of the body after which the first request gets nothing more until the server ends."""
    redirect: str = ""


class ImageServer:
    """Serves `files` by path; `requests` holds what was asked: path and Range ("" without)."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str]] = []
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                server.requests.append((self.path, wanted))
                served = server.files.get(self.path)
                if served is None:
                    self.send_error(404)
                elif served.redirect:
                    self.send_response(302)
                    self.send_header("Location", served.redirect)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif served.statuses:
                    self.send_error(served.statuses.pop(0))
                else:
                    self._send(served, wanted)

            def _send(self, served: Served, wanted: str) -> None:
                start = 0
                total = len(served.content)
                fresh = self.headers.get("If-Range", served.etag) == served.etag
                if wanted and fresh and not served.ignore_range:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    if start >= total:
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{total}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(total - start))
                if served.etag:
                    self.send_header("ETag", served.etag)
                self.end_headers()
                body = served.content[start:]
                if served.hang_after is not None:
                    self.wfile.write(body[: served.hang_after])
                    served.hang_after = None
                    server._ended.wait()
                    self.close_connection = True
                elif served.cut_after:
                    self.wfile.write(body[: served.cut_after.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(body)

        return Handler
