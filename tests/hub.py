"""A stand-in for the Hugging Face hub on the loopback: repositories, uploads and commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed; `refusal` answers every commit with an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        """Whether each repository is private, by name."""
        self.files: dict[str, bytes] = {}
        """Committed files by name."""
        self.cards: list[str] = []
        """Cards that were sent to be validated."""
        self.refusal: tuple[int, str] | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        if self._is_stranger():
            return
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            status = 409 if name in self.server.private else 200
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.private.setdefault(name, private)
            return self._answer({"url": f"{self.server.address}/{name}", "error": "exists"}, status)
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]  # all in the commit, none apart
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self._answer({"files": modes})
        if "/commit/" in path:
            if self.server.refusal:
                status, reason = self.server.refusal
                return self._answer({"error": reason}, status)
            self._commit(body)
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            url = f"{self.server.address}/{repository}/commit/1"
            return self._answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})
        return self._answer({"error": f"no such endpoint: {path}"}, 404)

    def do_GET(self) -> None:
        if self._is_stranger():
            return
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name in self.server.private:
            return self._answer({"id": name, "private": self.server.private[name]})
        return self._answer({"error": "Repository not found"}, 404)

    def _is_stranger(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.path == "/api/validate-yaml":
            return False
        self._answer({"error": "Invalid username or password."}, 401)
        return True

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served_hub() -> Iterator[Hub]:
    """Run a hub while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
