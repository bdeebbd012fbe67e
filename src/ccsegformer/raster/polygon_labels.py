"""Labels of a scene as polygons, rasterised window by window."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.io import DatasetReader

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import (
    footprint,
    is_georeferenced,
    outline,
    project,
    reliable_bounds,
    turned,
    window_transform,
)
from ccsegformer.raster.polygon_files import (
    PolygonFile,
    class_ids,
    polygon_errors,
    polygons_in,
    read_features,
)
from ccsegformer.raster.read import Box


class Polygons:
    """Polygons in any CRS, rasterised on the scene's grid.

    A pixel has the class of the last polygon that contains its centre, and class 0 outside all of them.

    Args:
        file: File returned by `read_polygon_file`.
        scene: Open raster that the polygons label.
        classes: Classes of the data set.
        shared: Whether the file labels other scenes too, so that it need not overlap this one.

    Attributes:
        overlaps: Whether the file is empty or overlaps the scene.

    Raises:
        DataError: the scene lacks a CRS or georeference, no transformation leads to the polygons' CRS, or the
            two do not overlap.
    """

    def __init__(
        self, file: PolygonFile, scene: DatasetReader, classes: Classes, *, shared: bool = False
    ) -> None:

        self.file, self.path, self.classes = file, file.path, classes
        if scene.crs is None or not is_georeferenced(scene):
            missing = "georeference" if scene.crs else "CRS"
            raise DataError(f"{scene.name}: has no {missing}, which the polygons of {file.path} need")
        self.scene_crs, self.transform = scene.crs.to_wkt(), scene.transform
        self.overlaps = self._overlap(footprint(scene))
        if not (shared or self.overlaps):
            raise DataError(f"{file.path}: does not overlap {scene.name}")

    def _overlap(self, extent: Any) -> bool:
        """Return whether the polygons' bounds meet the scene, in the CRS of the one or of the other."""
        import shapely

        if self.file.bounds is None:
            return True
        bounds = shapely.box(*self.file.bounds)
        there = reliable_bounds(extent, self.scene_crs, self.file.crs)
        if there is not None:  # a box, as an outline across the antimeridian is torn in other CRSs
            here = extent if self.scene_crs == self.file.crs else shapely.box(*there)
            return any(bounds.intersects(copy) for copy in turned(here, self.file.crs))
        points = shapely.get_coordinates(
            project(bounds.segmentize(bounds.length / 80), self.file.crs, self.scene_crs)
        )
        points = points[np.isfinite(points).all(axis=1)]
        found = shapely.MultiPoint(points).envelope
        return any(found.intersects(copy) for copy in turned(extent, self.scene_crs))

    def open(self) -> None:
        """Do nothing: each read opens the file and finds the polygons of its window by the file's index."""

    def read(self, source: object, box: Box) -> NDArray[np.int32]:
        """Rasterise the class ids (H, W) of a box inside the scene; `source` is ignored."""
        import shapely

        transform = window_transform(self.transform, box.left, box.top)
        window = outline(transform, box.width, box.height, None, None)
        features, geometries, values = self._features(window)
        labels = np.zeros((box.height, box.width), np.int32)
        shapes = []
        with polygon_errors(self.path):
            ids = class_ids(self.path, values, features, self.classes)
            for place in np.argsort(features):  # indices give another order
                for shape in polygons_in(shapely.from_wkb(geometries[place])):
                    found = turned(project(shape, self.file.crs, self.scene_crs), self.scene_crs)
                    shapes += [(copy, ids[place]) for copy in found if _meet(copy.bounds, window.bounds)]
            if shapes:
                rasterize(shapes, out=labels, transform=transform)
        return labels

    def _features(self, window: Any) -> tuple[list[int], list[Any], list[Any]]:
        """Read what may touch a window, given by its outline in the scene's CRS."""
        import shapely

        if self.file.bounds is None:
            return [], [], []
        bounds = reliable_bounds(window, self.scene_crs, self.file.crs)
        found: dict[int, tuple[Any, Any]] = {}
        boxes = (
            [None]
            if bounds is None
            else [copy.bounds for copy in turned(shapely.box(*bounds), self.file.crs)]
        )
        for bbox in boxes:
            if bbox is None or _meet(bbox, self.file.bounds):
                features, geometries, values = read_features(
                    self.path, self.file.column, layer=self.file.layer, bbox=bbox
                )
                found |= dict(zip(features, zip(geometries, values, strict=True), strict=True))
        return list(found), [shape for shape, _ in found.values()], [value for _, value in found.values()]


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two bounds (left, bottom, right, top) touch."""
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
