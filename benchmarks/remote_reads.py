"""Measure reading a scene window by window from a slow server: `python -m benchmarks.remote_reads`.

A server on the loopback waits 50 ms before it answers each request, as an object store may. It serves
a tiled GeoTIFF of 4096 x 4096 pixels, in bands and types that are common. Windows are those of
`predict`. "Before" is one reader and GDAL's own settings.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import rasterio

SIDE = 4096
SCENES = {"3 x uint8": (3, "uint8", "pixel"), "10 x uint16": (10, "uint16", "band")}
"""Bands, type, and how bands are interleaved."""
WINDOWS = ((512, 128), (1024, 128))

RUN = """
import ast, hashlib, sys, time
from ccsegformer.labelling.windows import spans
from ccsegformer.raster import _ahead, read
from ccsegformer.raster.read import Box, open_raster
address, window, overlap, before = sys.argv[1], *map(int, sys.argv[2:5])
if before:
    _ahead.AHEAD, _ahead.READERS = 0, 1
    read.REMOTE_OPTIONS.clear()
    read.REMOTE_OPTIONS["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"
read.REMOTE_OPTIONS.update(ast.literal_eval(sys.argv[5]) if len(sys.argv) > 5 else {})
with open_raster(address) as source:
    rows, columns = (spans(side, window, overlap) for side in source.shape)
boxes = [Box(r.start, c.start, r.stop, c.stop) for r in rows for c in columns]
start, digest = time.monotonic(), hashlib.sha256()
with _ahead.read_ahead(address, None, boxes) as tiles:
    for image, valid in tiles:
        digest.update(image.tobytes())
print(time.monotonic() - start, digest.hexdigest())
"""


class SlowServer(ThreadingHTTPServer):
    """Serves a folder in ranges, and counts requests and bytes."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.folder, self.delay = folder, delay
        self.requests, self.sent = 0, 0


class SlowHandler(BaseHTTPRequestHandler):
    """Answers HEAD and GET, whole or a range."""

    server: SlowServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        """Answer with a file's size."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with a file or a range of it."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(self.server.delay)
        path = self.server.folder / self.path[1:]
        size = path.stat().st_size
        first, last = 0, size - 1
        if asked := self.headers["Range"]:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1) if body else b""
        self.server.requests += 1
        self.server.sent += len(content)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def write_cog(path: Path, bands: int, dtype: str, interleave: str) -> None:
    """Write a tiled scene that compresses to about half, as images do."""
    generator = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": bands, "dtype": dtype}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 4e5, 0, -10, 5e6)}
    with rasterio.open(path, "w", interleave=interleave, **profile) as target:
        for band in range(1, bands + 1):
            target.write(generator.integers(1, 16, (SIDE, SIDE)).astype(dtype), band)


def main() -> None:
    """Print seconds, requests and megabytes before and after, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--options", default="{}", help="more settings of GDAL, a Python dictionary")
    arguments = parser.parse_args()
    print("| scene | window | readers | s | requests | MB | faster |\n|---|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        server = SlowServer(Path(folder), arguments.delay)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for number, (name, layout) in enumerate(SCENES.items()):
            write_cog(Path(folder) / f"{number}.tif", *layout)
            address = f"/vsicurl/http://127.0.0.1:{server.server_port}/{number}.tif"
            for window, overlap in WINDOWS:
                compare(server, address, f"{name} | {window}", (window, overlap), arguments.options)


def compare(server: SlowServer, address: str, label: str, windows: tuple[int, int], options: str) -> None:
    """Read a scene before and after, check that the pixels are the same, and print a line for each."""
    results = []
    for before in (1, 0):
        server.requests = server.sent = 0
        command = [sys.executable, "-c", RUN, address, *map(str, windows), str(before)]
        command += [] if before else [options]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        results.append((float(done[0]), done[1]))
        ratio = results[0][0] / results[-1][0]
        readers = "before" if before else "after"
        print(
            f"| {label} | {readers} | {results[-1][0]:.1f} | {server.requests} | {server.sent / 1e6:.0f} "
            f"| {ratio:.1f} x |",
            flush=True,
        )
    assert results[0][1] == results[1][1], "other pixels"


if __name__ == "__main__":
    main()
