"""Routes of the tab Label: images, jobs that label them, and what these write."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from ccsegformer.app.images import (
    EXAMPLES,
    MAX_PHOTOGRAPH_BYTES,
    MAX_SCENE_BYTES,
    OpenedImage,
    as_png,
    example_picture,
    receive_file,
)
from ccsegformer.app.jobs import Job
from ccsegformer.app.photographs import write_labelled_photograph
from ccsegformer.app.scenes import growing_tile, map_files, map_scene, polygon_tile
from ccsegformer.app.tiles import Color4, TileGrid, map_value, scene_tile
from ccsegformer.app.workspace import OpenedModel, Workspace
from ccsegformer.errors import CCSegformerError, DataError

LONGEST_NAME = 200
DOWNLOADS = {
    "values.png": "image/png",
    "labels.png": "image/png",
    "overlay.png": "image/png",
    "map.tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    "map.png": "image/png",
    "polygons.gpkg": "application/geopackage+sqlite3",
}
"""Files that a job writes for each model."""


class _Labelling(NamedTuple):
    """A job of this tab."""

    job: Job
    image: OpenedImage
    models: list[OpenedModel]


class LabelRequest(BaseModel):
    """What to label, with one model or two."""

    image: str
    models: list[int] = Field(min_length=1, max_length=2)


class PathRequest(BaseModel):
    """A file below the given folder."""

    path: str


def label_routes(workspace: Workspace) -> APIRouter:
    """Return the routes below `/api/label`."""
    routes = APIRouter()
    images = workspace.images
    begun: dict[str, _Labelling] = {}

    @routes.get("/limits")
    def limits() -> dict[str, int]:
        return {
            "examples": EXAMPLES,
            "photograph_bytes": MAX_PHOTOGRAPH_BYTES,
            "scene_bytes": MAX_SCENE_BYTES,
        }

    @routes.post("/images", status_code=201)
    async def upload(request: Request, name: str = "") -> dict[str, Any]:
        """Take the body of the request as a file; its name is only shown."""
        path, shown = images.new_path(), _shown_name(name)
        length = request.headers.get("content-length", "")
        await receive_file(request.stream(), path, shown, int(length) if length.isdecimal() else None)
        return (await run_in_threadpool(images.add, path, shown)).as_json()

    @routes.delete("/images/{key}", status_code=204)
    def forget(key: str) -> None:
        images.remove(key)

    @routes.get("/images/{key}/picture.jpg")
    def picture(key: str) -> Response:
        return Response(images[key].shown, media_type="image/jpeg")

    @routes.get("/images/{key}/{z}/{x}/{y}.png")
    def image_tile(key: str, z: int, x: int, y: int) -> Response:
        image = images[key]
        return _png_response(scene_tile(image.path, _grid_of(image), list(image.bands), z, x, y))

    @routes.post("/examples/{number}", status_code=201)
    def example(number: int) -> dict[str, Any]:
        return images.draw_example(number).as_json()

    @routes.get("/examples/{number}/picture.png")
    def example_thumbnail(number: int) -> Response:
        if not 0 <= number < EXAMPLES:
            raise DataError(f"example {number}: there are {EXAMPLES}")
        content = _thumbnail(number)
        return Response(content, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    @routes.get("/folder")
    def folder(path: str = "") -> dict[str, Any]:
        return images.listing(path)

    @routes.post("/paths", status_code=201)
    def open_path(wanted: PathRequest) -> dict[str, Any]:
        return images.open_path(wanted.path).as_json()

    @routes.post("/jobs", status_code=202)
    def start(wanted: LabelRequest) -> dict[str, Any]:
        image = images[wanted.image]
        models = [workspace.model(key) for key in dict.fromkeys(wanted.models)]
        job = workspace.queue.submit(
            f"Label {image.name}", lambda job: _label(job, image, models, workspace.peaks)
        )
        begun[job.key] = _Labelling(job, image, models)
        for key in begun.keys() - workspace.queue.jobs.keys():
            del begun[key]
        return job.as_json()

    def found(key: str, number: int) -> tuple[_Labelling, OpenedModel, Path]:
        if key not in workspace.queue.jobs or key not in begun or not 0 <= number < len(begun[key].models):
            raise DataError("this result is no longer kept: label the image again")
        labelling = begun[key]
        return labelling, labelling.models[number], labelling.job.folder / str(number)

    @routes.get("/jobs/{key}/{number}/files/{file}")
    def written(key: str, number: int, file: str) -> Response:
        labelling, _, folder = found(key, number)
        if file not in DOWNLOADS or not (folder / file).is_file():
            raise DataError(f"{file}: there is none")
        stem = Path(labelling.image.name).stem.replace(" ", "_") or "image"
        return FileResponse(folder / file, media_type=DOWNLOADS[file], filename=f"{stem}_{file}")

    @routes.get("/jobs/{key}/{number}/{layer}/{z}/{x}/{y}.png")
    def result_tile(key: str, number: int, layer: str, z: int, x: int, y: int) -> Response:
        labelling, model, folder = found(key, number)
        if layer not in ("map", "polygons"):
            raise DataError(f"{layer}: there is no such layer")
        draw = growing_tile if layer == "map" else polygon_tile
        return _png_response(draw(map_files(folder), _grid_of(labelling.image), model.classes, z, x, y))

    @routes.get("/jobs/{key}/{number}/value")
    def value(key: str, number: int, x: float, y: float) -> dict[str, Any] | None:
        """Return class and probability at a world pixel of a map."""
        labelling, _, folder = found(key, number)
        path = map_files(folder).shown
        at = map_value(path, _grid_of(labelling.image), x, y) if path else None
        return at and {"label": at[0], "probability": at[1]}

    return routes


def _label(
    job: Job, image: OpenedImage, models: list[OpenedModel], peaks: dict[tuple[Any, ...], int]
) -> dict[str, Any]:
    """Label an image with each model in turn; messages call it by its name."""
    try:
        return _label_in_turn(job, image, models, peaks)
    except CCSegformerError as error:
        raise type(error)(str(error).replace(str(image.path), image.name)) from error


def _label_in_turn(
    job: Job, image: OpenedImage, models: list[OpenedModel], peaks: dict[tuple[Any, ...], int]
) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    labels = []
    for number, model in enumerate(models):
        folder, turn = job.folder / str(number), (number, len(models))
        job.report(number / len(models), model.name, results=[*results])
        if image.grid is not None:
            results.append(map_scene(image, model, folder, job, turn, peaks))
            continue

        def progress(share: float, model: OpenedModel = model, number: int = number) -> None:
            job.report((number + share) / len(models), model.name)

        about, found = write_labelled_photograph(image.path, image.name, model, folder, progress, peaks)
        results.append(about)
        labels.append(found)
    result: dict[str, Any] = {"results": results}
    if len(labels) == 2 and models[0].classes.names == models[1].classes.names:
        result["agreement"] = float((labels[0] == labels[1]).mean())
    return result


def _grid_of(image: OpenedImage) -> TileGrid:
    if image.grid is None:
        raise DataError(f"{image.name}: a photograph has no tiles")
    return image.grid


def _shown_name(name: str) -> str:
    """Return a file's name for messages: without folders and control characters, and not too long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:LONGEST_NAME].strip() or "image"


def _png_response(picture: Color4) -> Response:
    return Response(as_png(picture), media_type="image/png")


@lru_cache
def _thumbnail(number: int) -> bytes:
    return example_picture(number)
