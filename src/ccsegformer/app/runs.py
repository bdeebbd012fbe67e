"""Routes of the tab Runs."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from ccsegformer.app.run_folders import describe_run, run_folder, run_names, summarize_run
from ccsegformer.app.workspace import Workspace
from ccsegformer.errors import DataError

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
"""A report is someone's file: it may draw itself, but not see the page or the network."""


def runs_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/runs`."""
    routes, root = APIRouter(), workspace.runs

    @routes.get("")
    def runs() -> dict[str, Any]:
        return {"folder": str(root), "runs": [summarize_run(root, name) for name in run_names(root)]}

    @routes.get("/run")
    def run(name: str) -> dict[str, Any]:
        run_folder(root, name)
        return describe_run(root, name)

    @routes.get("/report")
    def report(name: str) -> Response:
        page = run_folder(root, name) / "evaluation.html"
        if not page.is_file():
            raise DataError(f"{name}: has no evaluation.html; write it with ccsegformer evaluate --output")
        return FileResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    return routes
