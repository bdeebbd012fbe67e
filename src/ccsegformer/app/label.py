"""Routes of the tab Label."""

from fastapi import APIRouter

from ccsegformer.app.workspace import Workspace


def label_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/label`."""
    routes = APIRouter()
    return routes
