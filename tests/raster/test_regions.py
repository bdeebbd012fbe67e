"""Regions traced strip by strip, compared with a flood fill of the whole map."""

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ccsegformer.raster._regions import NO_LABEL, trace_regions

MAPS = arrays.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-1, 2))
RING = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.int32)  # holes that touch
SPIRAL = np.array(
    [[0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, -1, 1, 1, 0], [0, 0, 0, 0, 0]], np.int32
)


def strips(labels: np.ndarray, rows: int) -> list[np.ndarray]:
    return [labels[top : top + rows] for top in range(0, len(labels), rows)]


def flood(labels: np.ndarray) -> list[tuple[int, shapely.Polygon]]:
    """Find each region pixel by pixel and return the union of its pixels."""
    regions, left = [], {tuple(place) for place in np.argwhere(labels != NO_LABEL).tolist()}
    while left:
        found = [left.pop()]
        for row, column in found:
            for place in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if place in left and labels[place] == labels[row, column]:
                    left.remove(place)
                    found.append(place)
        union = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in found])
        regions.append((int(labels[found[0]]), union.simplify(0)))  # drop vertices within straight lines
    return regions


def by_shape(regions: list[tuple[int, shapely.Polygon]]) -> list[tuple[int, str]]:
    # `simplify` keeps the start of a ring even within a straight line, so this compares traced regions only.
    return sorted((label, shapely.normalize(polygon).wkt) for label, polygon in regions)


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(1, 9))
@example(RING, 1)
@example(SPIRAL, 2)
def test_strips_of_any_height_give_the_same_regions(labels: np.ndarray, rows: int) -> None:
    whole = list(trace_regions([labels]))
    assert by_shape(list(trace_regions(strips(labels, rows)))) == by_shape(whole)
    expected = flood(labels)
    assert len(whole) == len(expected)
    for label, polygon in expected:
        assert any(label == other and shapely.equals(polygon, found) for other, found in whole)


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(1, 9), st.sampled_from([0.5, 1.0, 2.5]))
@example(SPIRAL, 2, 2.5)
def test_simplified_neighbours_keep_a_common_border(labels: np.ndarray, rows: int, tolerance: float) -> None:
    """Simplified regions do not overlap, and cover a map that is labelled everywhere."""
    traced = list(trace_regions(strips(labels, rows), tolerance))
    polygons = [polygon for _, polygon in traced]
    assert sorted(label for label, _ in traced) == sorted(label for label, _ in flood(labels))
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in polygons)
    total = sum(polygon.area for polygon in polygons)
    assert shapely.union_all(polygons).area == pytest.approx(total, abs=1e-9)
    if (labels != NO_LABEL).all():
        assert total == pytest.approx(labels.size, abs=1e-9)


@pytest.mark.parametrize("other", [1, NO_LABEL])
@pytest.mark.parametrize("rows", [64, 16])
def test_simplifying_cuts_stairs_in_strips(rows: int, other: int) -> None:
    stairs = np.where(np.arange(64)[:, None] > np.arange(64), 0, other).astype(np.int32)
    for _, polygon in trace_regions(strips(stairs, rows)):
        assert len(polygon.exterior.coords) > 120
    for _, polygon in trace_regions(strips(stairs, rows), 1.0):
        assert len(polygon.exterior.coords) < 16


def test_finished_regions_are_yielded_early() -> None:
    """A region is yielded no later than with the strip after its last one."""
    seen = []

    def rows() -> list[np.ndarray]:
        for row in range(6):
            seen.append(row)
            yield np.array([[row // 2, 7]], np.int32)

    came = [(label, seen[-1]) for label, _ in trace_regions(rows())]
    assert came == [(0, 2), (1, 4), (2, 5), (7, 5)] or came == [(0, 2), (1, 4), (7, 5), (2, 5)]
