"""Paper B: where its targets come from, and its claims from runs whose numbers are known."""

import pytest
import torch

from advinterp.data import tensor_dls
from advinterp.jobs import Job, check_out, run_job, store_row, write_study
from advinterp.papers import b as paper_b
from advinterp.papers.b import items_b
from advinterp.papers.reproduce import paper_ledger
from advinterp.penalty import TargetMap

# ---------------------------------------------------------------- targets

TINY = dict(n_train=6, n_test=3, epochs=1, bs=3, steps=1, drops=[], lr=0.01, eps=1.5, fast=False)
TINY |= dict(net="small_conv", weights=dict(interp=0.1, interp_permuted=0.2, interp_natural=0.3))


def few_digits(name, *, bs, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(9, 1, 8, 8, generator=generator)
    y = torch.arange(9) % 2
    return tensor_dls(x[:6], y[:6], x[6:], y[6:], bs, vocab=["0", "1"], device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Method -> (the penalty it was trained with, the folder of its run)."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_b, "get_data", few_digits)
        for method in ("interp", "interp_permuted", "interp_natural"):
            made = []

            def target_map(*args, made=made, **kwargs):
                made.append(TargetMap(*args, **kwargs))
                return made[-1]

            patch.setattr(paper_b, "TargetMap", target_map)
            settings = dict(TINY, data="mnist", method=method, seed=0, device="cpu")
            out = check_out(tmp_path_factory.mktemp(method))
            job = Job("advinterp.papers.b:run_one", settings, method)
            assert run_job(job, out) == "done"
            (penalty,) = made
            found[method] = penalty, out
    return found


def maps_of(trained, method):
    return trained[method][0].targets.maps.flatten(1)


def test_the_permuted_control_has_the_same_values_at_other_places(trained):
    maps, permuted = maps_of(trained, "interp"), maps_of(trained, "interp_permuted")
    assert (maps > 0).any(1).all()
    assert torch.equal(maps.sort(1).values, permuted.sort(1).values)
    assert ((maps > 0) != (permuted > 0)).any(1).all()


@pytest.mark.parametrize(
    "method, teacher",
    [
        ("interp", "adversarial"),
        ("interp_permuted", "adversarial"),
        ("interp_natural", "natural"),
    ],
)
def test_targets_come_from_the_teacher_of_the_method(trained, method, teacher):
    penalty, out = trained[method]
    (stored,) = (out / "targets").iterdir()
    assert stored.name.startswith(f"mnist-{teacher}-seed0")
    assert penalty.absolute and penalty.distance == "l2"


# ---------------------------------------------------------------- claims

ROBUST = dict(
    natural=0.2, jacobian=0.4, adversarial=0.9, interp=0.6, interp_permuted=0.5, interp_natural=0.7
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Table 1 with three seeds, each a hundredth more robust than the one before."""
    out = check_out(tmp_path_factory.mktemp("b"))
    (item,) = [item for item in items_b() if item.name == "B.table1"]
    for job in item.jobs():
        seed, robust = job.settings["seed"], ROBUST[job.settings["method"]]
        noise = 0.01 * seed * robust
        row = dict(accuracy=0.98, train_accuracy=1.0, robust_accuracy=robust + noise)
        row |= dict(true_norm=1 - robust + noise, other_norm=0.5)
        store_row(job, out, row, seconds=1.0)
    return item, out


def test_claims_are_differences_of_the_models_they_name(study):
    item, out = study
    write_study(out, item.jobs())
    found = paper_ledger("B", out)
    claims = found[found.data == "mnist"].set_index(["better", "worse", "measure"])
    expected = {
        ("interp", "natural", "robust_accuracy"): (0.4, "confirmed"),
        ("adversarial", "interp", "robust_accuracy"): (0.3, "confirmed"),
        ("interp", "interp_permuted", "robust_accuracy"): (0.1, "confirmed"),
        ("interp", "interp_natural", "robust_accuracy"): (-0.1, "contradicted"),
        ("natural", "interp", "true_norm"): (0.4, "confirmed"),
    }
    for compared, (difference, verdict) in expected.items():
        sign = -1 if "norm" in compared[2] else 1
        line = claims.loc[compared]
        assert line.difference == pytest.approx(difference * (1 + 0.01 * sign)), compared
        assert line.verdict == verdict
    assert set(found.verdict[found.data == "cifar10"]) == {"not testable here"}


def test_table_1_has_ours_beside_the_published_numbers(study):
    item, out = study
    (accuracies,) = item.sections(out)
    table = accuracies.table
    assert list(table.seeds) == [3] * 6
    assert list(table["Std. Acc."]) == ["98.00 ± 0.00"] * 6
    robust = [cell.split(" ±")[0] for cell in table["Adv. Acc."]]
    assert sorted(map(float, robust)) == pytest.approx(sorted(101 * r for r in ROBUST.values()))
    ours_and_paper = dict(zip(table["Adv. Acc., paper"], robust))
    assert ours_and_paper["90.21"] == "90.90"
