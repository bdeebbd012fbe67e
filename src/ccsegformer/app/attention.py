"""Routes of the tab Attention."""

from fastapi import APIRouter

from ccsegformer.app.workspace import Workspace


def attention_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/attention`."""
    routes = APIRouter()
    return routes
