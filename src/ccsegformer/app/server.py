"""The application: the page, the routes of its tabs, and the server on this machine."""

from importlib.resources import files
from pathlib import Path
from typing import Any

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
from ccsegformer.errors import CCSegformerError

STATIC = Path(str(files("ccsegformer.app") / "static"))
PATIENCE = 10.0
"""Seconds for which a request for a job's news waits for some."""


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


def serve_app(workspace: Workspace, host: str, port: int) -> None:
    """Serve the page until the person stops it."""
    import uvicorn

    hosts = tuple(dict.fromkeys((*LOOPBACK, host)))
    uvicorn.run(
        create_app(workspace, hosts),
        host=host,
        port=port,
        log_level="warning",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )


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
