"Gaze maps: small cases that can be seen at once, symmetries, and what is refused."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advinterp.gaze import gaze_maps, height_width

WIDE = dict(img_w=1920, img_h=1080)  # as large as the screen: sigma is in pixels of the photo


def table(points, img_id=1, img_w=160, img_h=160):
    "Fixations of one photo from (x, y, duration)."
    rows = pd.DataFrame(points, columns=["x", "y", "duration_ms"])
    return rows.assign(img_id=img_id, img_w=img_w, img_h=img_h)


def peak(one_map):
    return np.unravel_index(one_map.argmax(), one_map.shape)


@st.composite
def tables(draw, min_points=1, max_points=12):
    "A photo with some fixations, none shorter than 350 ms."
    n = draw(st.integers(min_points, max_points))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    places = rng.integers(0, 160, (n, 2))
    return table(np.c_[places, rng.integers(350, 900, n)])


# ---------------------------------------------------------------- known cases


@pytest.mark.parametrize("x, y", [(5, 5), (85, 25), (155, 145)])
def test_one_fixation_is_one_hill_where_it_is(x, y):
    (one,) = gaze_maps(table([(x, y, 400)]), 16)
    assert peak(one) == (y // 10, x // 10)
    assert one.max() == 1
    assert one.min() == 0


def test_a_hill_falls_like_a_gaussian():
    "At the fixation, one deviation beside it, and two below."
    points = table([(960, 540, 400)], **WIDE)
    (one,) = gaze_maps(points, (1080, 1920), sigma=75)
    assert one[540, 960] == 1
    assert one[540, 960 + 75] == pytest.approx(np.exp(-0.5), abs=1e-6)
    assert one[540 - 75, 960] == pytest.approx(np.exp(-0.5), abs=1e-6)
    assert one[540 + 150, 960] == pytest.approx(np.exp(-2), abs=1e-6)


def test_the_deviation_is_that_of_the_screen():
    "A photo of a quarter of the screen was enlarged four times: its hills are as wide on the map."
    large = gaze_maps(table([(960, 540, 400)], **WIDE), 32)
    # pixel x has its middle at x + 1/2, here a quarter of 960.5 and of 540.5
    small = gaze_maps(table([(239.625, 134.625, 400)], img_w=480, img_h=270), 32)
    assert np.allclose(large, small, atol=1e-6)
    half = gaze_maps(table([(960, 540, 400)], **WIDE), 32, screen=(3840, 2160))
    assert half.mean() < 0.5 * large.mean()


def test_a_photo_was_enlarged_until_it_fitted_the_screen():
    "A square of 160 pixels to 1080: 75 pixels of the screen are 11 1/9 of the photo."
    (one,) = gaze_maps(table([(80, 80, 400)]), 160, sigma=75)
    deviation = 75 / (1080 / 160)
    for distance in (5, 11, 20):
        expected = np.exp(-0.5 * (distance / deviation) ** 2)
        assert one[80, 80 + distance] == pytest.approx(expected, abs=1e-6)
        assert one[80 - distance, 80] == pytest.approx(expected, abs=1e-6)


def test_hills_are_as_high_as_fixations_are_long():
    "Far apart, so that neither reaches the other."
    (one,) = gaze_maps(table([(10, 10, 800), (150, 150, 400)]), 16, sigma=40)
    assert one[1, 1] == 1
    assert one[15, 15] == pytest.approx(0.5, abs=0.01)


def test_short_fixations_are_dropped():
    points = table([(10, 10, 349), (150, 150, 350)])
    assert peak(gaze_maps(points, 16)[0]) == (15, 15)
    long_only = gaze_maps(points[points.duration_ms == 350], 16)
    assert np.array_equal(gaze_maps(points, 16), long_only)
    both = gaze_maps(points, 16, min_ms=0)[0]
    assert both[1, 1] == pytest.approx(349 / 350, abs=0.02)


def test_a_photo_without_long_fixations_has_a_map_of_zeros():
    short = table([(10, 10, 100)], img_id=2)
    maps = gaze_maps(pd.concat([table([(10, 10, 400)]), short]), 8)
    assert maps[0].max() == 1
    assert not maps[1].any()


def test_the_nearest_two_become_one_at_their_mean():
    "Three points, two may stay: those at 20 and 40 meet at 30, with the mean of 500 and 700 ms."
    three = table([(20, 80, 500), (40, 80, 700), (150, 80, 400)])
    merged = table([(30, 80, 600), (150, 80, 400)])
    assert np.allclose(gaze_maps(three, 16, max_points=2), gaze_maps(merged, 16), atol=1e-6)
    assert not np.allclose(gaze_maps(three, 16, max_points=3), gaze_maps(merged, 16), atol=1e-2)
    one = table([(90, 80, 500)])  # the mean of 30 and 150
    assert np.allclose(gaze_maps(three, 16, max_points=1), gaze_maps(one, 16), atol=1e-6)


def test_photos_come_in_the_order_of_their_names_and_do_not_mix():
    first, second = table([(10, 10, 400)], img_id=3), table([(150, 150, 400)], img_id=12)
    together = gaze_maps(pd.concat([second, first]), 16)
    assert np.array_equal(together, np.concatenate([gaze_maps(first, 16), gaze_maps(second, 16)]))


def test_more_photos_than_are_made_at_once():
    photos = [table([(i % 160, (7 * i) % 160, 400)], img_id=i) for i in range(515)]
    maps = gaze_maps(pd.concat(photos), 8)
    assert maps.shape == (515, 8, 8)
    for i in (0, 511, 512, 514):
        assert np.array_equal(maps[i], gaze_maps(photos[i], 8)[0])


# ---------------------------------------------------------------- symmetries


@given(tables())
@settings(max_examples=20)
def test_maps_fill_the_range(points):
    (one,) = gaze_maps(points, (12, 20))
    assert one.shape == (12, 20)
    assert one.dtype == np.float32
    assert one.min() == 0
    assert one.max() == 1


@given(tables(), st.floats(0.5, 10))
@settings(max_examples=20)
def test_only_the_ratio_of_durations_counts(points, factor):
    longer = points.assign(duration_ms=points.duration_ms * factor)
    kw = dict(size=12, min_ms=0)
    assert np.allclose(gaze_maps(longer, **kw), gaze_maps(points, **kw), atol=1e-5)


@given(tables(max_points=7))
@settings(max_examples=20)
def test_a_mirrored_photo_has_a_mirrored_map(points):
    "A fixation on pixel x is at x + 1/2, so that its mirror image is on pixel 159 - x."
    (one,) = gaze_maps(points, 16)
    (mirrored,) = gaze_maps(points.assign(x=159 - points.x), 16)
    assert np.allclose(mirrored, one[:, ::-1], atol=1e-5)
    (turned,) = gaze_maps(points.assign(x=points.y, y=points.x), 16)
    assert np.allclose(turned, one.T, atol=1e-5)


@given(tables(max_points=7), st.integers(0, 100))
@settings(max_examples=20)
def test_the_order_of_fixations_does_not_count(points, seed):
    shuffled = points.sample(frac=1, random_state=seed)
    assert np.allclose(gaze_maps(shuffled, 16), gaze_maps(points, 16), atol=1e-5)


@given(tables())
@settings(max_examples=20)
def test_the_table_is_left_alone(points):
    before = points.copy()
    gaze_maps(points, 8)
    pd.testing.assert_frame_equal(points, before)


# ---------------------------------------------------------------- sizes, and what is refused


@pytest.mark.parametrize(
    "size, expected", [(5, (5, 5)), (np.int64(5), (5, 5)), ((3, 4), (3, 4)), ([3, 4], (3, 4))]
)
def test_height_width(size, expected):
    assert height_width(size) == expected


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None, "64", (3,), (3, 4, 5), (3, 0), (3, 2.0)])
def test_impossible_sizes_are_refused(size):
    for function in (height_width, lambda size: gaze_maps(table([(1, 1, 400)]), size)):
        with pytest.raises(ValueError, match=r"size=.*expected a whole number >= 1, or two"):
            function(size)


@pytest.mark.parametrize(
    "kw, error, message",
    [
        (dict(max_points=0), ValueError, "max_points=0"),
        (dict(max_points=2.5), TypeError, r"max_points=2\.5"),
        (dict(sigma=0.0), ValueError, r"sigma=0\.0: expected a number > 0"),
        (dict(sigma=float("nan")), ValueError, "sigma=nan"),
    ],
)
def test_impossible_arguments_are_refused(kw, error, message):
    with pytest.raises(error, match=message):
        gaze_maps(table([(1, 1, 400)]), 8, **kw)


@pytest.mark.parametrize("column", ["img_id", "img_w", "img_h", "x", "y", "duration_ms"])
def test_a_missing_column_is_named(column):
    with pytest.raises(ValueError, match=f"the columns {column} are missing"):
        gaze_maps(table([(1, 1, 400)]).drop(columns=column), 8)
