"""Routes of the tab Attention: record what a model attends to in an image, and answer for each pixel."""

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from ccsegformer.app.images import OpenedImage
from ccsegformer.app.jobs import Job
from ccsegformer.app.workspace import OpenedModel, Workspace
from ccsegformer.data.images import read_image
from ccsegformer.errors import DataError
from ccsegformer.labelling.loading import load_model
from ccsegformer.labelling.model_files import is_model_file
from ccsegformer.labelling.model_item import is_model_item
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention_weights import AttentionApplication
from ccsegformer.raster.read import Box, fill_gaps, open_raster, read_box
from ccsegformer.report._display import as_rgb
from ccsegformer.report.attention_maps import AttentionPanel, attend_image, attention_colors, panels_at

LONGEST_SIDE_ATTENDED = 1024
"""Larger photographs are resized to this, and of larger scenes the middle is shown: memory is bounded."""
KEPT_RECORDS = 2
"""Recorded images whose pixels can be clicked."""
MODELS_BESIDE = 4
"""Models that are shown at once."""


class _Record(NamedTuple):
    """What some models attend to in an image."""

    size: tuple[int, int]
    picture: bytes  # JPEG
    applications: Mapping[str, list[AttentionApplication]]  # by name


class AttentionRequest(BaseModel):
    """An image, and the models to show it to."""

    image: str
    models: list[int] = Field(min_length=1, max_length=MODELS_BESIDE)


def attention_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/attention`."""
    routes = APIRouter()
    records: dict[str, _Record] = {}

    @routes.get("/view.{suffix}")
    def view(suffix: str) -> Response:
        """Return the script or style sheet that the page of one image has too."""
        types = {"js": "text/javascript", "css": "text/css"}
        if suffix not in types:
            raise DataError(f"view.{suffix}: there is none")
        path = Path(str(files("ccsegformer.report") / "templates" / f"attention_view.{suffix}"))
        return FileResponse(path, media_type=types[suffix])

    @routes.post("/jobs", status_code=202)
    def start(wanted: AttentionRequest) -> dict[str, Any]:
        image = workspace.images[wanted.image]
        models = [_with_modules(workspace.model(key)) for key in dict.fromkeys(wanted.models)]

        def work(job: Job) -> dict[str, Any]:
            record, note = _record(job, image, models)
            records[job.key] = record
            for old in list(records)[:-KEPT_RECORDS]:
                records.pop(old, None)
            stages = [each.stage for own in record.applications.values() for each in own]
            return {
                "size": record.size,
                "stages": max(stages, default=0) + 1,
                "colors": attention_colors(),
                "note": note,
            }

        return workspace.queue.submit(f"Attention in {image.name}", work).as_json()

    def found(key: str) -> _Record:
        if key not in records:
            raise DataError("this image's attention is no longer kept: choose the image again")
        return records[key]

    @routes.get("/records/{key}/picture.jpg")
    def picture(key: str) -> Response:
        return Response(found(key).picture, media_type="image/jpeg")

    @routes.get("/records/{key}/weights")
    def weights(key: str, stage: int, x: int, y: int) -> dict[str, Any]:
        """Return where pixel x, y looks in a stage, from 0: panels for each model."""
        record = found(key)
        height, width = record.size
        if not (0 <= y < height and 0 <= x < width):
            raise DataError(f"pixel {x},{y}: the image has {width} x {height}")
        models = [
            {
                "name": name,
                "panels": [_panel_json(each) for each in panels_at(own, stage, (y, x), record.size)],
            }
            for name, own in record.applications.items()
        ]
        return {"pixel": [y, x], "models": models}

    return routes


def _with_modules(model: OpenedModel) -> OpenedModel:
    """Refuse a model whose queries and keys cannot be seen."""
    if is_model_file(model.source) or is_model_item(model.source):
        raise DataError(
            f"{model.name}: a model file; attention is shown for SegFormers in folders or on the hub"
        )
    if model.engine.config is None or not hasattr(model.engine.config, "stage_attention"):
        raise DataError(f"{model.name}: attention is shown for SegFormers only")
    return model


def _record(job: Job, image: OpenedImage, models: list[OpenedModel]) -> tuple[_Record, str]:
    """Show the models the image, and say how it was changed before."""
    pixels, note = _attended_pixels(image)
    applications = {}
    for number, model in enumerate(models):
        job.report(number / len(models), model.name)
        name = model.name if model.name not in applications else model.source
        applications[name] = attend_image(_loaded(model.source), pixels, image.name)
    buffer = io.BytesIO()
    Image.fromarray(as_rgb(pixels)).save(buffer, "JPEG", quality=90)
    return _Record((pixels.shape[1], pixels.shape[2]), buffer.getvalue(), applications), note


@lru_cache(maxsize=MODELS_BESIDE)
def _loaded(source: str) -> CrissCrossSegformerForSemanticSegmentation:
    return load_model(source)[0]


def _attended_pixels(image: OpenedImage) -> tuple[Tensor, str]:
    """Read a photograph, reduced if it is large, or the middle of a scene; say what was done."""
    height, width = image.size
    longest = LONGEST_SIDE_ATTENDED
    if image.grid is not None:
        rows, columns = min(height, longest), min(width, longest)
        top, left = (height - rows) // 2, (width - columns) // 2
        with open_raster(image.path) as source:
            values, valid = read_box(source, Box(top, left, top + rows, left + columns))
        cut = (rows, columns) != (height, width)
        note = f"The middle {columns} × {rows} pixels of the scene, from ({left}, {top})." if cut else ""
        return torch.from_numpy(fill_gaps(values, valid)), note
    pixels = read_image(image.path)
    if max(height, width) <= longest:
        return pixels, ""
    rows, columns = (max(1, round(side * longest / max(height, width))) for side in (height, width))
    resized = F.interpolate(
        pixels.as_subclass(Tensor)[None].float(), (rows, columns), mode="bilinear", antialias=True
    )
    note = f"Reduced from {width} × {height} to {columns} × {rows} pixels."
    return resized[0].round().clamp(0, 255).to(torch.uint8), note


def _panel_json(panel: AttentionPanel) -> dict[str, Any]:
    """Return a panel for the page: its weights as base64 of float32, little-endian."""
    return {
        "title": panel.title,
        "attention": panel.attention,
        "composed": panel.composed,
        "grid": panel.grid,
        "position": panel.position,
        "heads": panel.heads,
        "ratio": panel.ratio,
        "shape": None if panel.weights is None else panel.weights.shape[1:],
        "row": _base64(panel.row),
        "column": _base64(panel.column),
        "weights": _base64(panel.weights),
    }


def _base64(weights: NDArray[Any] | None) -> str | None:
    return None if weights is None else base64.b64encode(weights.astype("<f4").tobytes()).decode()
