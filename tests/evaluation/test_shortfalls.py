import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccsegformer.errors import DataError
from ccsegformer.evaluation.confusion import compute_metrics
from ccsegformer.evaluation.shortfalls import rank_shortfalls

NAMES = ("road", "grass", "tree", "car", "never")


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_losses_add_up_to_what_the_mean_iou_lacks(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.integers(0, 9, (k, k)) * (generator.random((k, k)) < 0.5)
    matrix[0, 0] = 1
    losses = rank_shortfalls(matrix.tolist(), NAMES[:k])
    metrics = compute_metrics(matrix, NAMES[:k])
    assert sum(of.shortfall for of in losses) == pytest.approx(1 - metrics.mean_iou)
    assert [of.shortfall for of in losses] == sorted((of.shortfall for of in losses), reverse=True)
    assert {of.name for of in losses} == {n for n, row in metrics.per_class.items() if row["iou"] is not None}
    assert all(of.confused_share <= 1 - of.iou + 1e-12 for of in losses)


def test_a_class_is_confused_with_that_which_takes_most_of_its_union() -> None:
    matrix = np.zeros((5, 5), dtype=int)
    matrix[0, 0], matrix[0, 1], matrix[2, 0] = (
        6,
        1,
        3,
    )  # road: 1 pixel labelled grass, 3 of tree labelled road
    matrix[3, 3] = 5
    grass, tree, road, car = rank_shortfalls(matrix, NAMES)
    assert (road.name, road.confused_with, road.confused_share) == ("road", "tree", 0.3)
    assert road.shortfall == pytest.approx((1 - 0.6) / 4)
    assert (tree.name, tree.iou, tree.confused_with, tree.confused_share) == ("tree", 0, "road", 1)
    assert (grass.name, grass.accuracy, grass.pixels) == ("grass", None, 0)
    assert (car.name, car.shortfall, car.confused_with) == ("car", 0, None)


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(DataError, match="no labelled pixel"):
        rank_shortfalls([[0]], ["a"])
