"""Connected regions of a label map as polygons in pixel coordinates, strip by strip; nothing of files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape

NOTHING = -1


@dataclass
class _Region:
    """A region that may go on in the next strip, and its parts so far."""

    label: int
    parts: list[shapely.Polygon]


def trace_regions(
    strips: Iterable[NDArray[np.int32]], simplify: float = 0.0
) -> Iterator[tuple[int, shapely.Polygon]]:
    """Trace the regions of a map that comes as strips of rows (h, W) of labels, from the top down.

    A region is all pixels of one label that share edges; `NOTHING` is traced around, never as a region. Comes
    out as (label, polygon), x to the right and y downwards in pixels, with a vertex at every turn and nowhere
    else. Held in memory are one strip and the regions that reach its last row. Strips of other heights give
    the same polygons in another order.

    Args:
        strips: of one width; a strip has at least one row.
        simplify: corners whose triangle is smaller than the square of this, in pixels, are cut (Visvalingam
            and Whyatt, "Line generalisation by repeated elimination of points", 1993). Neighbours keep their
            border in common and polygons stay valid; points where a border crosses into another strip stay.
    """
    waiting: dict[int, _Region] = {}
    above: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None  # the last row's labels and regions
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
            meet = (values[0] == above[0]) & (values[0] != NOTHING)
            owner = _owners(parts[at_edge], numbers, top, values.shape[1])
            renamed = _join(waiting, np.unique(np.stack([above[1][meet], owner[meet]]), axis=1))
        owner = _owners(parts[at_edge], numbers, bottom, values.shape[1])
        present, place = np.unique(owner, return_inverse=True)
        owner = np.array([_root(renamed, number) for number in present.tolist()])[place]
        for number in sorted(waiting.keys() - set(owner.tolist())):
            yield _whole(waiting.pop(number), simplify)
        above = values[-1].copy(), owner
        top, named = bottom, named + len(parts)
    for region in waiting.values():
        yield _whole(region, simplify)


def _trace_strip(
    values: NDArray[np.int32], top: int, simplify: float
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """The labels (N,) and polygons (N,) of one strip's own regions."""
    mask = None if simplify else values != NOTHING
    found = [(int(label), shape(outline)) for outline, label in shapes(values, mask=mask, connectivity=4)]
    labels = np.array([label for label, _ in found], np.int64)
    parts = np.array([part for _, part in found], object)
    if simplify and len(parts):
        # What has no data takes part, so that borders to it are simplified too. The strip's outline is kept.
        dense = shapely.transform(shapely.segmentize(parts, 1), np.rint)  # neighbours share every vertex
        parts = shapely.coverage_simplify(dense, simplify, simplify_boundary=False)
        parts, labels = parts[labels != NOTHING], labels[labels != NOTHING]
    return labels, shapely.transform(parts, lambda points: points + np.array([0, top]))


def _owners(
    parts: NDArray[np.object_], numbers: NDArray[np.int64], row: int, width: int
) -> NDArray[np.int64]:
    """Whose pixel each one is along a strip's edge at y = `row`: one of `numbers`, or `NOTHING`; (W,)."""
    owner = np.full(width, NOTHING, np.int64)
    points, part = shapely.get_coordinates(shapely.get_exterior_ring(parts), return_index=True)
    on_row = points[:, 1] == row
    edges = np.flatnonzero(on_row[1:] & on_row[:-1] & (part[1:] == part[:-1]))
    ends = np.sort(np.stack([points[edges, 0], points[edges + 1, 0]]), axis=0).astype(np.int64)
    for left, right, number in zip(*ends, numbers[part[edges]], strict=True):
        owner[left:right] = number
    return owner


def _join(waiting: dict[int, _Region], pairs: NDArray[np.int64]) -> dict[int, int]:
    """Make one region of each pair (2, N); returns under which number a joined one is to be found."""
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


def _whole(region: _Region, simplify: float) -> tuple[int, shapely.Polygon]:
    """The union of a region's parts."""
    parts = np.array(region.parts, object)
    if len(parts) == 1 and not simplify:
        return region.label, parts[0]
    # A hole never reaches the strip's edge, so that outlines alone have to be joined.
    joined = shapely.union_all(shapely.polygons(shapely.get_exterior_ring(parts)))
    holes = [hole for part in parts for hole in part.interiors]
    return region.label, _straighten(shapely.Polygon(joined.exterior, [*joined.interiors, *holes]))


def _straighten(polygon: shapely.Polygon) -> shapely.Polygon:
    """The same polygon without vertices in the middle of a straight line; exact, as coordinates are whole."""
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        points = shapely.get_coordinates(ring)[:-1]
        step = np.roll(points, -1, axis=0) - points
        before = np.roll(step, 1, axis=0)
        rings.append(points[before[:, 0] * step[:, 1] != before[:, 1] * step[:, 0]])
    return shapely.Polygon(rings[0], rings[1:])
