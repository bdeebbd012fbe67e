"""A folder served over HTTP on the loopback, whole or in ranges, by a server that can fail."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = int | Literal["half", "stall", "silence"]
"""A status other than 200 in place of an answer; half a body, also with silence after it; or silence."""


class Server(ThreadingHTTPServer):
    """Serves a folder; the query of an address does not matter."""

    daemon_threads = True

    def __init__(self, folder: Path, handler: type["Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), lambda *about: handler(*about, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, list[Fault]] = {}
        """What befalls the next requests for a path, or for any under `*`; the last one lasts."""
        self.failed = 0
        """Number of requests that a fault has befallen."""
        self.closing = threading.Event()

    def next_fault(self, path: str, without: tuple[Fault, ...] = ()) -> Fault:
        """Take what befalls the next request for a path, unless it is a fault of another kind of request."""
        waiting = self.faults.get(path.partition("?")[0]) or self.faults.get("*") or [200]
        if waiting[0] in without:
            return 200
        fault = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        self.failed += fault != 200
        return fault


class Handler(SimpleHTTPRequestHandler):
    """Answers as object stores do."""

    server: Server

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.path)
        if self.fails(fault):
            return
        if "Range" in self.headers:
            self.send_part(fault)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if not self.fails(self.server.next_fault(self.path, ("half", "stall"))):
            super().do_HEAD()

    def fails(self, fault: Fault) -> bool:
        """Answer with an error status, or never; return whether that was asked for."""
        if fault == "silence":
            self.server.closing.wait(20)
        elif isinstance(fault, int) and fault != 200:
            self.send_error(fault)
        else:
            return False
        return True

    def send_part(self, fault: Fault) -> None:
        """Send the range that is asked for, or half of it."""
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = (int(first), int(last)) if first else (len(content) - int(last), len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part if fault == 200 else part[: len(part) // 2])
        if fault == "stall":
            self.server.closing.wait(20)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path, handler: type[Handler] = Handler) -> Iterator[Server]:
    """Serve a folder while the block runs."""
    server = Server(folder, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
