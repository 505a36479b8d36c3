"""Figures show the numbers they were given, keep no state, and refuse what they cannot draw."""

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from advinterp import plots
from advinterp.metrics import gini

rng = np.random.default_rng(0)
IMAGES = rng.uniform(size=(3, 1, 12, 12))
TABLE = rng.normal(size=(8, 5))


def boxes():
    return plots.gini_boxplot({"l": rng.normal(size=50), "a": torch.randn(50)})


def boxes_of_several_sets():
    one = {"l": rng.normal(size=5)}
    two = {"l": rng.normal(size=5), "a": rng.normal(size=5)}
    return plots.gini_boxplot({"one": one, "two": two})


def box_of_one_value():
    return plots.gini_boxplot({"a": np.array([0.1])})


def impact_bars():
    impacts = {"natural": np.abs(TABLE[0]), "adversarial": torch.rand(5)}
    return plots.feature_impact_bars("abcde", impacts)


def impact_bars_of_zeros():
    return plots.feature_impact_bars("abcde", {"natural": np.zeros(5)})


def grid():
    maps = {"n": rng.normal(size=IMAGES.shape), "a": torch.zeros(3, 1, 12, 12)}
    return plots.saliency_grid(IMAGES, maps, labels=["one", 2, 3])


def grid_of_colour_images():
    maps = {"n": torch.randn(1, 3, 9, 7, requires_grad=True)}
    return plots.saliency_grid(torch.rand(1, 3, 9, 7), maps, shared=False)


def contributions():
    maps = {"n": TABLE, "a": torch.randn(8, 5)}
    return plots.contribution_bars(maps, names="abcde", max_bars=3, labels=range(8))


def contributions_of_one_row_of_zeros():
    return plots.contribution_bars({"n": np.zeros((1, 2))})


def lines_of_accuracy():
    several = ([0.91, 0.95], [0.98, 0.9], [".1", ".3"])
    return plots.tradeoff({"n": ([0.9], [0.99]), "a": several})


def lines_of_more_methods_than_markers():
    return plots.tradeoff({f"method {i}": ([0.1, 0.2], [0.9, i / 20]) for i in range(12)})


def lines_of_robustness():
    curves = {"n": [0.9, 0.1], "a": rng.uniform(size=(3, 2))}
    return plots.robustness_curves([0, 0.1], curves, chance=0.1)


def heat_maps():
    grads = {"n": TABLE, "a": np.zeros_like(TABLE)}
    signal = rng.integers(5, size=(8, 2))
    return plots.gradient_heatmap(grads, signal=signal, names="abcde")


FIGURES = [
    boxes,
    boxes_of_several_sets,
    box_of_one_value,
    impact_bars,
    impact_bars_of_zeros,
    grid,
    grid_of_colour_images,
    contributions,
    contributions_of_one_row_of_zeros,
    lines_of_accuracy,
    lines_of_more_methods_than_markers,
    lines_of_robustness,
    heat_maps,
]
each_figure = pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)


def texts(labels):
    return [label.get_text() for label in labels]


@each_figure
def test_draws_a_figure_and_leaves_nothing_behind(draw):
    settings = dict(plt.rcParams)
    out = io.BytesIO()
    fig = draw()
    fig.savefig(out, format="png")
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings
    pixels = plt.imread(io.BytesIO(out.getvalue()))
    assert pixels[..., :3].std() > 0.01, "nothing is drawn"


@each_figure
def test_nothing_is_cut_off(draw):
    fig = draw()
    fig.draw_without_rendering()
    drawn = fig.get_tightbbox()  # of all artists, in inches
    width, height = fig.get_size_inches()
    assert drawn.x0 >= -0.02 and drawn.x1 <= width + 0.02
    assert drawn.y0 >= -0.02 and drawn.y1 <= height + 0.02


def test_boxes_are_quartiles():
    gain = rng.normal(size=101)
    ax = plots.gini_boxplot({"a": gain}).axes[0]
    diamond = next(line for line in ax.lines if line.get_marker() == "D")
    assert diamond.get_ydata()[0] == pytest.approx(gain.mean())
    others = [line.get_ydata() for line in ax.lines if line is not diamond]
    drawn = np.concatenate(others)
    for share in (0.25, 0.5, 0.75):
        assert np.isclose(drawn, np.quantile(gain, share)).any()


def test_impact_bars_are_sorted_and_thresholded_by_any_model():
    natural = np.array([0.01, 1.0, 0.5, 0.02, 0.0])
    adversarial = np.array([0.0, 0.2, 0.0, 0.06, 0.01])
    impacts = {"natural": natural, "adversarial": adversarial}
    ax = plots.feature_impact_bars("abcde", impacts).axes[0]
    assert texts(ax.get_xticklabels()) == ["b", "c", "d"]  # d: for the adversarial model
    assert [bar.get_height() for bar in ax.containers[1]] == [0.2, 0.0, 0.06]
    impacts = {"natural": natural}
    ax = plots.feature_impact_bars("abcde", impacts, threshold=0, max_bars=2).axes[0]
    assert texts(ax.get_xticklabels()) == ["b", "c"]
    assert ax.get_title() == "2 of 5 features"


def test_the_first_model_sets_the_order():
    impacts = {"first": np.array([0.1, 0.3, 0.2]), "second": np.array([0.9, 0.0, 0.1])}
    ax = plots.feature_impact_bars("abc", impacts).axes[0]
    assert texts(ax.get_xticklabels()) == ["b", "c", "a"]


@pytest.mark.parametrize("shared, weak", [(True, 0.5), (False, 1.0)])
def test_a_shared_scale_is_that_of_the_strongest_map(shared, weak):
    maps = {"strong": np.full((1, 4, 4), 2.0), "weak": np.full((1, 4, 4), -1.0)}
    axes = plots.saliency_grid(np.zeros((1, 4, 4)), maps, shared=shared).axes
    drawn = [ax.images[0].get_array().max() for ax in axes[1:3]]
    assert drawn == [1.0, weak]


def test_grid_captions_are_gini_indices_of_all_channels():
    maps = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    fig = plots.saliency_grid(torch.rand(2, 3, 6, 6), {"a": maps})
    captions = [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()]
    assert captions == [f"Gini {value:.3f}" for value in gini(maps)]


def test_contributions_share_features_and_scale_along_a_row_and_add_up():
    maps = {"n": TABLE, "a": TABLE[:, ::-1] * 0.1}
    axes = plots.contribution_bars(maps, names="abcde", max_bars=2).axes
    for i in range(8):
        left, right = axes[2 * i : 2 * i + 2]
        top = np.argsort(-np.abs(TABLE[i]))[:2]
        assert texts(left.get_yticklabels()) == [*("abcde"[j] for j in top), "3 others"]
        assert left.get_xlim() == right.get_xlim()
        for ax, values in zip((left, right), maps.values()):
            others = values[i].sum() - values[i, top].sum()
            drawn = [bar.get_width() for bar in ax.patches]
            assert drawn == pytest.approx([*values[i, top], others])


def test_lines_of_one_point_are_stars_and_points_carry_their_strengths():
    ax = lines_of_accuracy().axes[0]
    star, line = ax.lines
    assert star.get_marker() == "*" and star.get_linestyle() == "None"
    assert line.get_xydata().tolist() == [[0.91, 0.98], [0.95, 0.9]]
    assert texts(ax.texts) == [".1", ".3"]


def test_bands_go_from_the_smallest_to_the_largest_seed():
    seeds = np.array([[0.9, 0.1], [0.8, 0.3], [0.7, 0.2]])
    ax = plots.robustness_curves([0, 1], {"a": seeds}).axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx(seeds.mean(0))
    band = ax.collections[0].get_paths()[0].vertices
    at_start = band[band[:, 0] == 0, 1]
    assert (at_start.min(), at_start.max()) == (0.7, 0.9)


def test_heat_maps_are_shares_of_the_largest_entry():
    ax = plots.gradient_heatmap({"a": TABLE}, signal=range(8), names="abcde").axes[0]
    shares = np.asarray(ax.images[0].get_array())
    largest = np.abs(TABLE).max(1, keepdims=True)
    assert shares == pytest.approx(np.abs(TABLE) / largest)
    assert ax.collections[0].get_offsets().tolist() == [[i, i] for i in range(8)]
    assert texts(ax.get_xticklabels()) == list("abcde")


BAD = [
    (plots.gini_boxplot, [{}], "gains: expected at least one entry"),
    (plots.gini_boxplot, [{"a": []}], r"gains\['a'\]: expected finite values, at least one"),
    (plots.gini_boxplot, [{"a": TABLE}], r"shape \(8, 5\): expected 1 dimensions"),
    (plots.feature_impact_bars, ["abc", {"n": np.ones(5)}], r"\(5,\): expected \(3,\)"),
    (plots.feature_impact_bars, ["abcde", {"n": np.ones(5)}, -1], "threshold=-1"),
    (plots.saliency_grid, [IMAGES, {"n": IMAGES[:2]}], r"maps\['n'\] of shape"),
    (plots.saliency_grid, [IMAGES, {}], "maps: expected at least one entry"),
    (plots.saliency_grid, [TABLE, {"n": TABLE}], "expected 3 or 4 dimensions"),
    (plots.saliency_grid, [IMAGES * np.nan, {"n": IMAGES}], "images: expected finite values"),
    (plots.saliency_grid, [IMAGES, {"n": IMAGES}, [1]], "labels: 1 given, expected 3"),
    (plots.tradeoff, [{"a": ([1.0], [1.0, 2.0])}], "1 Gini indices for 2 accuracies"),
    (plots.robustness_curves, [[0, 1], {"a": [1.0]}], "expected 2 values"),
    (plots.gradient_heatmap, [{"a": TABLE[0]}], "expected 2 dimensions"),
    (plots.gradient_heatmap, [{"a": TABLE}, [1, 2]], "signal: 2 given"),
    (plots.gradient_heatmap, [{"a": TABLE}, None, "abc"], "names: 3 given, expected 5"),
    (plots.contribution_bars, [{}], "maps: expected at least one entry"),
    (plots.contribution_bars, [{"a": IMAGES}], "expected 2 dimensions"),
    (plots.contribution_bars, [{"a": TABLE}, "abc"], "names: 3 given, expected 5"),
    (plots.contribution_bars, [{"a": TABLE}, None, [1]], "labels: 1 given, expected 8"),
    (plots.contribution_bars, [{"a": TABLE}, None, None, 0], "max_bars=0"),
]


@pytest.mark.parametrize("draw, args, words", BAD)
def test_bad_input_is_refused(draw, args, words):
    with pytest.raises(ValueError, match=words):
        draw(*args)


def grid_of_images(maps):
    return plots.saliency_grid(IMAGES, maps)


@pytest.mark.parametrize(
    "draw",
    [
        plots.gini_boxplot,
        plots.tradeoff,
        plots.gradient_heatmap,
        plots.contribution_bars,
        grid_of_images,
    ],
)
def test_lists_are_no_dictionaries(draw):
    with pytest.raises(TypeError, match="expected a dictionary"):
        draw([1.0, 2.0])
