"""Routes of the tab Runs."""

from fastapi import APIRouter

from ccsegformer.app.workspace import Workspace


def runs_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/runs`."""
    routes = APIRouter()
    return routes
