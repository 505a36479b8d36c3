"Figures show the numbers they were given, keep no state, and refuse what they cannot draw."

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from advinterp import plots as P
from advinterp.metrics import gini

rng = np.random.default_rng(0)
imgs, tab = rng.uniform(size=(3, 1, 12, 12)), rng.normal(size=(8, 5))
CALLS = {
    "gini_boxplot": lambda: P.gini_boxplot({"l": rng.normal(size=50), "a": torch.randn(50)}),
    "gini_boxplot of several sets": lambda: P.gini_boxplot(
        {
            "one": {"l": rng.normal(size=5)},
            "two": {"l": rng.normal(size=5), "a": rng.normal(size=5)},
        }
    ),
    "gini_boxplot of one value": lambda: P.gini_boxplot({"a": np.array([0.1])}),
    "feature_impact_bars": lambda: P.feature_impact_bars(
        "abcde", {"natural": np.abs(tab[0]), "adversarial": torch.rand(5)}
    ),
    "feature_impact_bars of zeros": lambda: P.feature_impact_bars(
        "abcde", {"natural": np.zeros(5)}
    ),
    "saliency_grid": lambda: P.saliency_grid(
        imgs,
        {"n": rng.normal(size=imgs.shape), "a": torch.zeros(3, 1, 12, 12)},
        labels=["one", 2, 3],
    ),
    "saliency_grid of colour images": lambda: P.saliency_grid(
        torch.rand(1, 3, 9, 7), {"n": torch.randn(1, 3, 9, 7, requires_grad=True)}, shared=False
    ),
    "contribution_bars": lambda: P.contribution_bars(
        {"n": tab, "a": torch.randn(8, 5)}, names="abcde", max_bars=3, labels=range(8)
    ),
    "contribution_bars of one row of zeros": lambda: P.contribution_bars({"n": np.zeros((1, 2))}),
    "tradeoff": lambda: P.tradeoff(
        {"n": ([0.9], [0.99]), "a": ([0.91, 0.95], [0.98, 0.9], [".1", ".3"])}
    ),
    "robustness_curves": lambda: P.robustness_curves(
        [0, 0.1], {"n": [0.9, 0.1], "a": rng.uniform(size=(3, 2))}, chance=0.1
    ),
    "gradient_heatmap": lambda: P.gradient_heatmap(
        {"n": tab, "a": np.zeros_like(tab)}, signal=rng.integers(5, size=(8, 2)), names="abcde"
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_draws_a_figure_and_leaves_nothing_behind(call):
    rc, out = dict(plt.rcParams), io.BytesIO()
    fig = call()
    fig.savefig(out, format="png")
    assert isinstance(fig, Figure) and plt.get_fignums() == [] and dict(plt.rcParams) == rc
    pixels = plt.imread(io.BytesIO(out.getvalue()))
    assert pixels[..., :3].std() > 0.01  # something is drawn


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_nothing_is_cut_off(call):
    fig = call()
    fig.draw_without_rendering()
    drawn, (w, h) = fig.get_tightbbox(), fig.get_size_inches()  # of all artists, in inches
    assert drawn.x0 >= -0.02 and drawn.y0 >= -0.02 and drawn.x1 <= w + 0.02 and drawn.y1 <= h + 0.02


def test_boxes_are_quartiles():
    v = rng.normal(size=101)
    ax = P.gini_boxplot({"a": v}).axes[0]
    mean = [l for l in ax.lines if l.get_marker() == "D"][0]
    assert mean.get_ydata()[0] == pytest.approx(v.mean())
    drawn = np.concatenate([l.get_ydata() for l in ax.lines if l.get_marker() != "D"])
    assert any(np.isclose(drawn, np.median(v))) and any(np.isclose(drawn, np.quantile(v, 0.75)))


def test_impact_bars_are_sorted_and_thresholded_by_any_model():
    nat, adv = np.array([0.01, 1.0, 0.5, 0.02, 0.0]), np.array([0.0, 0.2, 0.0, 0.06, 0.01])
    ax = P.feature_impact_bars("abcde", {"natural": nat, "adversarial": adv}).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "b",
        "c",
        "d",
    ]  # d is kept for the adversarial model
    assert [b.get_height() for b in ax.containers[1]] == [0.2, 0.0, 0.06]
    ax = P.feature_impact_bars("abcde", {"natural": nat}, threshold=0, max_bars=2).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["b", "c"] and "2 of 5" in ax.get_title()


def test_grid_captions_are_gini_indices_of_all_channels():
    maps = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    fig = P.saliency_grid(torch.rand(2, 3, 6, 6), {"a": maps})
    assert [a.get_xlabel() for a in fig.axes if a.get_xlabel()] == [
        f"Gini {g:.3f}" for g in gini(maps)
    ]


def test_contributions_share_features_and_scale_along_a_row_and_add_up():
    maps = {"n": tab, "a": tab[:, ::-1] * 0.1}
    axes = P.contribution_bars(maps, names="abcde", max_bars=2).axes
    for i in range(8):
        pair, top = axes[2 * i : 2 * i + 2], np.argsort(-np.abs(tab[i]))[:2]
        assert [t.get_text() for t in pair[0].get_yticklabels()] == ["abcde"[j] for j in top] + [
            "3 others"
        ] and pair[0].get_xlim() == pair[1].get_xlim()
        for ax, m in zip(pair, maps.values()):
            assert [b.get_width() for b in ax.patches] == pytest.approx(
                [*m[i, top], m[i].sum() - m[i, top].sum()]
            )


@pytest.mark.parametrize(
    "call",
    [
        lambda: P.gini_boxplot({}),
        lambda: P.gini_boxplot({"a": []}),
        lambda: P.gini_boxplot({"a": tab}),
        lambda: P.feature_impact_bars("abc", {"n": np.ones(5)}),
        lambda: P.saliency_grid(imgs, {"n": imgs[:2]}),
        lambda: P.saliency_grid(imgs, {}),
        lambda: P.saliency_grid(tab, {"n": tab}),
        lambda: P.saliency_grid(imgs * np.nan, {"n": imgs}),
        lambda: P.tradeoff({"a": ([1.0], [1.0, 2.0])}),
        lambda: P.feature_impact_bars("abcde", {"n": np.ones(5)}, threshold=-1),
        lambda: P.robustness_curves([0, 1], {"a": [1.0]}),
        lambda: P.gradient_heatmap({"a": tab[0]}),
        lambda: P.gradient_heatmap({"a": tab}, signal=[1, 2]),
        lambda: P.saliency_grid(imgs, {"n": imgs}, labels=[1]),
        lambda: P.gradient_heatmap({"a": tab}, names="abc"),
        lambda: P.contribution_bars({}),
        lambda: P.contribution_bars({"a": imgs}),
        lambda: P.contribution_bars({"a": tab}, names="abc"),
        lambda: P.contribution_bars({"a": tab}, labels=[1]),
        lambda: P.contribution_bars({"a": tab}, max_bars=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_lists_are_no_dictionaries():
    for f in (
        P.gini_boxplot,
        P.tradeoff,
        P.gradient_heatmap,
        P.contribution_bars,
        lambda v: P.saliency_grid(imgs, v),
    ):
        with pytest.raises(TypeError, match="expected a dictionary"):
            f([1.0, 2.0])
