from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccsegformer.labelling.windows import STEP, Span, spans, weights, window_pixels


@st.composite
def sides(draw):
    window = draw(st.integers(STEP, 400))
    overlap = draw(st.integers(0, window // 2))
    return draw(st.integers(1, 3000)), window, overlap


@given(sides())
def test_every_pixel_is_final_once_and_its_weights_sum_to_one(side):
    length, window, overlap = side
    found = spans(length, window, overlap)
    total, count, final = np.zeros(length), np.zeros(length, int), np.zeros(length, int)
    for span in found:
        own = weights(span)
        assert own.dtype == np.float32 and len(own) == span.end - span.rise
        assert (own > 0).all() and (own <= 1).all()
        total[span.rise : span.end] += own
        count[span.rise : span.end] += 1
        final[span.rise : span.fall] += 1
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert count.max() <= 2
    assert (final == 1).all()


@given(sides())
def test_windows_lie_within_the_side_and_count_where_they_see(side):
    length, window, overlap = side
    found = spans(length, window, overlap)
    assert found[0].start == 0 and found[-1].stop == length
    for span in found:
        assert span.start <= span.rise <= span.full <= span.fall <= span.end <= span.stop
        assert span.start % STEP == 0 and span.size <= window
    for span in found[:-1]:
        assert span.size == window, "only the last one may be smaller"
    for before, after in pairwise(found):
        assert (before.fall, before.end) == (after.rise, after.full)
        assert before.stop - after.start > overlap - STEP


@given(sides())
def test_no_window_too_many(side):
    length, window, overlap = side
    found = spans(length, window, overlap)
    assert len(found) == 1 if length <= window else found[-2].stop < length


def test_the_edges_of_a_scene_are_not_faded():
    first, *_, last = spans(1000, 256, 64)
    assert weights(first)[0] == 1 and weights(last)[-1] == 1
    assert weights(first)[-1] < 0.001, "but a window is, towards its neighbour"


def test_the_last_window_is_moved_back_and_blends_over_the_middle_of_what_it_shares():
    before, last = spans(300, 256, 64)
    assert (before.start, before.stop, last.start, last.stop) == (0, 256, 64, 300)
    assert (last.rise, last.full) == (128, 192), "64 of the 192 pixels that both see"


@pytest.mark.parametrize("length", [1, 31, 256])
def test_a_side_no_longer_than_a_window_is_one(length):
    assert spans(length, 256, 64) == [Span(0, length, 0, 0, length, length)]


@pytest.mark.parametrize(("window", "overlap"), [(31, 0), (256, 129), (256, -1)])
def test_limits(window, overlap):
    with pytest.raises(ValueError, match="at most half"):
        spans(1000, window, overlap)


def test_window_pixels_are_those_that_the_network_sees():
    assert window_pixels(256, 100, 256, 64) == 256 * 100
    assert window_pixels(448, 448, 256, 64) == 512 * 512
