"""The application: the page, the routes of its tabs, and the server on this machine."""

import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ccsegformer import __version__
from ccsegformer.app.attention import attention_routes
from ccsegformer.app.guard import LOOPBACK, guarded
from ccsegformer.app.jobs import Job, QueueFullError
from ccsegformer.app.label import label_routes
from ccsegformer.app.runs import runs_routes
from ccsegformer.app.workspace import Workspace
from ccsegformer.errors import CCSegformerError, OutputError
from ccsegformer.lab.memory import free_at_once

STATIC = Path(str(files("ccsegformer.app") / "static"))
PATIENCE = 5.0
"""Seconds for which a request for a job's news waits for some."""
SHUTDOWN_SECONDS = 2
"""Time that open requests get at the end."""


def create_app(workspace: Workspace, hosts: tuple[str, ...] = LOOPBACK) -> ASGIApp:
    """Return the application; `hosts` are the names by which a browser may call it."""
    app = FastAPI(title="ccsegformer", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(CCSegformerError)
    def refuse(_: Request, error: CCSegformerError) -> Response:
        return JSONResponse({"detail": str(error)}, 429 if isinstance(error, QueueFullError) else 422)

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {
            "version": __version__,
            "models": [model.as_json() for model in workspace.models],
            "root": workspace.root is not None,
        }

    app.include_router(_job_routes(workspace))
    app.include_router(label_routes(workspace), prefix="/api/label")
    app.include_router(attention_routes(workspace), prefix="/api/attention")
    app.include_router(runs_routes(workspace), prefix="/api/runs")
    app.mount("/static", StaticFiles(directory=STATIC))
    return guarded(app, hosts)


def serve_app(workspace: Workspace, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve the page until the person, or SIGTERM, ends the process.

    Args:
        workspace: what the page shows.
        host: address to serve on.
        port: 0 takes a free one.
        ready: called with the page's address once it can be opened.

    Raises:
        OutputError: the address cannot be served on, for instance because another process does.
    """
    free_at_once()  # else memory that one model leaves hides what the next needs
    try:
        listener = socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise OutputError(
            f"{host}:{port}: cannot serve there: {error.strerror or error}; choose another --port"
        ) from error
    app = create_app(workspace, tuple(dict.fromkeys((*LOOPBACK, host))))
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    # uvicorn ends by raising the signal again: as an exception, so that temporary files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shown = f"[{host}]" if ":" in host else host
    with listener, suppress(KeyboardInterrupt):
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run([listener])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _job_routes(workspace: Workspace) -> APIRouter:
    routes, queue = APIRouter(prefix="/api/jobs"), workspace.queue

    def found(key: str) -> Job:
        if key not in queue.jobs:
            raise HTTPException(404, f"job {key}: is not known, or was long ago")
        return queue.jobs[key]

    @routes.get("")
    def jobs() -> list[dict[str, Any]]:
        return [job.as_json() for job in list(queue.jobs.values())]

    @routes.get("/{key}")
    def news(key: str, seen: int = -1) -> dict[str, Any]:
        """Answer when the job is past version `seen`, or after a while."""
        return found(key).wait(seen, PATIENCE)

    @routes.delete("/{key}")
    def cancel(key: str) -> dict[str, Any]:
        job = found(key)
        queue.cancel(job)
        return job.as_json()

    return routes
