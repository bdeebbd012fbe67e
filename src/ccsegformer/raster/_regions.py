"""Trace the connected regions of a label map, strip by strip, as polygons in pixel coordinates."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape

NO_LABEL = -1
"""Label of pixels that belong to no region."""


@dataclass
class _Region:
    """Region that may continue in the next strip: the parts found so far."""

    label: int
    parts: list[shapely.Polygon]


def trace_regions(
    strips: Iterable[NDArray[np.int32]], simplify: float = 0.0
) -> Iterator[tuple[int, shapely.Polygon]]:
    """Trace the regions of a map given as strips of rows (h, W) of labels, from top to bottom.

    A region is a set of pixels of one label, connected by their edges. Pixels of `NO_LABEL` belong to none.
    Yield each region as (label, polygon), with x to the right and y downwards in pixels, and vertices only
    where the outline turns. Memory holds one strip and the regions that reach its last row. The height of the
    strips changes the order of the polygons and nothing else.

    Args:
        strips: Strips of the same width, each of at least one row.
        simplify: Tolerance in pixels. Corners are cut if their triangle has an area below its square
            (Visvalingam and Whyatt, "Line generalisation by repeated elimination of points", 1993).
            Neighbours keep a common border, and polygons stay valid. Points where a border crosses from one
            strip to the next are kept.
    """
    waiting: dict[int, _Region] = {}
    # Labels and region numbers of the last row.
    above: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None
    top = named = 0
    for values in strips:
        bottom = top + len(values)
        labels, parts = _trace_strip(values, top, simplify)
        low, high = shapely.bounds(parts)[:, [1, 3]].T
        at_edge = ((low == top) & (above is not None)) | (high == bottom)
        for index in np.flatnonzero(~at_edge):
            yield int(labels[index]), _straighten(parts[index]) if simplify else parts[index]

        numbers = named + np.flatnonzero(at_edge)
        for number in numbers.tolist():
            waiting[number] = _Region(int(labels[number - named]), [parts[number - named]])
        renamed: dict[int, int] = {}
        if above is not None:
            meet = (values[0] == above[0]) & (values[0] != NO_LABEL)
            owner = _owners(parts[at_edge], numbers, top, values.shape[1])
            renamed = _merge_regions(waiting, np.unique(np.stack([above[1][meet], owner[meet]]), axis=1))
        owner = _owners(parts[at_edge], numbers, bottom, values.shape[1])
        present, place = np.unique(owner, return_inverse=True)
        owner = np.array([_root(renamed, number) for number in present.tolist()])[place]
        for number in sorted(waiting.keys() - set(owner.tolist())):
            yield _union_of_parts(waiting.pop(number), simplify)
        above = values[-1].copy(), owner
        top, named = bottom, named + len(parts)
    for region in waiting.values():
        yield _union_of_parts(region, simplify)


def _trace_strip(
    values: NDArray[np.int32], top: int, simplify: float
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Return the labels (N,) and polygons (N,) of the regions of one strip."""
    mask = None if simplify else values != NO_LABEL
    found = [(int(label), shape(outline)) for outline, label in shapes(values, mask=mask, connectivity=4)]
    labels = np.array([label for label, _ in found], np.int64)
    parts = np.array([part for _, part in found], object)
    if simplify and len(parts):
        # Pixels without label take part, so borders to them are simplified too; the strip's edge is kept.
        dense = shapely.transform(shapely.segmentize(parts, 1), np.rint)  # neighbours share every vertex
        parts = shapely.coverage_simplify(dense, simplify, simplify_boundary=False)
        parts, labels = parts[labels != NO_LABEL], labels[labels != NO_LABEL]
    return labels, shapely.transform(parts, lambda points: points + np.array([0, top]))


def _owners(
    parts: NDArray[np.object_], numbers: NDArray[np.int64], row: int, width: int
) -> NDArray[np.int64]:
    """Return the region number (W,) of each pixel along the line y = `row`, or `NO_LABEL`."""
    owner = np.full(width, NO_LABEL, np.int64)
    points, part = shapely.get_coordinates(shapely.get_exterior_ring(parts), return_index=True)
    on_row = points[:, 1] == row
    edges = np.flatnonzero(on_row[1:] & on_row[:-1] & (part[1:] == part[:-1]))
    ends = np.sort(np.stack([points[edges, 0], points[edges + 1, 0]]), axis=0).astype(np.int64)
    for left, right, number in zip(*ends, numbers[part[edges]], strict=True):
        owner[left:right] = number
    return owner


def _merge_regions(waiting: dict[int, _Region], pairs: NDArray[np.int64]) -> dict[int, int]:
    """Merge each pair (2, N) of regions; return which number replaces which."""
    renamed: dict[int, int] = {}
    for pair in pairs.T.tolist():
        first, second = (_root(renamed, number) for number in pair)
        if first != second:
            if len(waiting[first].parts) < len(waiting[second].parts):
                first, second = second, first
            waiting[first].parts += waiting.pop(second).parts
            renamed[second] = first
    return renamed


def _root(renamed: dict[int, int], number: int) -> int:
    while number in renamed:
        number = renamed[number]
    return number


def _union_of_parts(region: _Region, simplify: float) -> tuple[int, shapely.Polygon]:
    """Return label and polygon of a region, the union of its parts."""
    parts = np.array(region.parts, object)
    if len(parts) == 1 and not simplify:
        return region.label, parts[0]
    # Holes of a part do not reach the edge of its strip, so only the outlines need a union.
    joined = shapely.union_all(shapely.polygons(shapely.get_exterior_ring(parts)))
    holes = [hole for part in parts for hole in part.interiors]
    return region.label, _straighten(shapely.Polygon(joined.exterior, [*joined.interiors, *holes]))


def _straighten(polygon: shapely.Polygon) -> shapely.Polygon:
    """Remove vertices within straight lines; exact, since coordinates are integers."""
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        points = shapely.get_coordinates(ring)[:-1]
        step = np.roll(points, -1, axis=0) - points
        before = np.roll(step, 1, axis=0)
        rings.append(points[before[:, 0] * step[:, 1] != before[:, 1] * step[:, 0]])
    return shapely.Polygon(rings[0], rings[1:])
