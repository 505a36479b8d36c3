"""Settings reach the work: whichever setting of a preset is changed, some job then does other work.

A setting is part of the name of its jobs. One that never reaches loaders, networks, training or
measures would name two runs differently that are the same. Here everything that a job calls is
written down in place of being done.
"""

import contextlib
import functools
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advinterp import study
from advinterp.data import Arrays, load, tensor_dls
from advinterp.papers import a, b, c, common, d
from advinterp.papers.reproduce import find_items

# ---------------------------------------------------------------- what a call looks like


def seen(value):
    """A value as plain data: tensors by shape and sum, functions by name and arguments."""
    if isinstance(value, functools.partial):
        return [seen(value.func), seen(value.args), seen(value.keywords)]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        numbers = torch.as_tensor(value).double()
        weights = torch.arange(numbers.numel(), dtype=torch.double).reshape(numbers.shape)
        return [list(value.shape), (numbers * (1 + weights)).sum().item()]
    if isinstance(value, dict):
        return {str(name): seen(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [seen(part) for part in value]
    if isinstance(value, study.StepDecay):
        return ["steps", list(value.at)]
    if isinstance(value, study._CropFlip):
        return ["crops", value.pad]
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__qualname__
    text = repr(value)
    return type(value).__name__ if " object at 0x" in text else text


class Work:
    """A list of calls."""

    def __init__(self):
        self.calls = []

    def note(self, name, *args, **kwargs):
        self.calls.append([name, seen(args), seen(kwargs)])

    def stub(self, name, result=None):
        """A function that notes its call and returns a result."""

        def called(*args, **kwargs):
            self.note(name, *args, **kwargs)
            return result(*args, **kwargs) if callable(result) else result

        return called


class NotedLearner:
    """A Learner that writes down what it should do."""

    def __init__(self, work, dls, model, cbs=(), opt_func=None):
        self.work, self.dls, self.model = work, dls, model
        self.maps = torch.arange(16.0).reshape(4, 2, 2)
        work.note("learner", model, cbs, opt_func)

    def adversarial(self, adversary, *args, schedule=None, **how):
        shares = [] if schedule is None else [schedule(share) for share in (0.0, 0.1, 0.5, 1.0)]
        self.work.note("adversary", adversary, vars(adversary), *args, shares=shares, **how)
        return self

    def penalise(self, penalty, weight=1.0):
        self.work.note("penalty", penalty, vars(penalty), weight)
        return self

    def fit(self, epochs, lr):
        self.work.note("fit", epochs, lr)

    no_bar = no_logging = staticmethod(contextlib.nullcontext)


# ---------------------------------------------------------------- what stands in for what


def few(name, **how):
    """Twelve examples; with maps where a truth is asked for."""
    tables = dict(mushroom=5, spambase=5)
    shape = (tables[name],) if name in tables else (1 + 2 * (name == "cifar10"), 8, 8)
    x = torch.linspace(0, 1, 12 * int(np.prod(shape))).reshape(12, *shape)
    y = torch.arange(12) % 2
    truth = (x > 0.3).float()[:, 0]
    maps = dict(maps=truth[:6], maps_valid=truth[6:]) if how.get("maps") else {}
    vocab = [str(label) for label in range(2)]
    return tensor_dls(x[:6], y[:6], x[6:], y[6:], 3, vocab=vocab, device="cpu", **maps)


def net(*args, **kwargs):
    return nn.Linear(3, 2)


def many_photos(name):
    x = np.zeros((6_000, 3, 1, 1), dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(6_000)
    y = np.arange(6_000) % 10
    if name == "coco_object_masks":
        return SimpleNamespace(x=x, y=y, maps=x[:, 0], groups=None, class_names=["person", "cat"])
    return Arrays(x, y, x[:900], y[:900], None, [str(label) for label in range(10)])


class Files:
    """The training part of a folder, as far as paper C takes it apart."""

    def __init__(self):
        self.tls = [SimpleNamespace(items=list(range(9_469))) for _ in "xy"]

    def __len__(self):
        return len(self.tls[0].items)


def photos(work, name, **how):
    """Loaders of a folder of 9,469 photos; of few examples for sets with maps."""
    if name != "imagenette":
        return few(name, maps=True)

    def chosen(train):
        work.note("items", *[np.array(tl.items) for tl in train.tls])
        return few(name).train

    train = SimpleNamespace(new=chosen)
    return SimpleNamespace(train_ds=Files(), train=train, valid=few(name).valid)


def examples(dl, n=None):
    x = torch.linspace(0, 1, 4 * 3 * 64).reshape(4, 3, 8, 8)
    return [x, torch.arange(4) % 2, x[:, 0]]


def per_example(model, x, *rest, **how):
    return torch.ones(len(x))


def like_input(model, x, *rest, **how):
    return torch.ones_like(x)


MAPS = ("saliency", "smoothgrad", "sparsified_smoothgrad", "moreau_grad", "integrated_gradients")
MAPS += ("deep_shap",)
NETS = ("one_layer", "small_conv", "madry_cnn", "noack_cnn", "wide_resnet", "pooled_conv")
NETS += ("photo_resnet34", "photo_efficientnet_b0", "photo_lite0")
NUMBERS = ("accuracy", "robust_accuracy")
SCORE = SimpleNamespace(mean=0.5, score=pd.DataFrame(dict(fraction=[0.1], score=[0.5])))


def replace(patch, work):
    """Put what writes down its calls in place of what does them, in all papers."""
    for module in (a, b, c, common, d, study):
        for name in (*MAPS, *NETS, *NUMBERS):
            result = like_input if name in MAPS else net if name in NETS else 0.5
            patch.setattr(module, name, work.stub(name, result), raising=False)
        patch.setattr(module, "drawn_as_in_0_1", lambda adversary: adversary, raising=False)
        patch.setattr(module, "set_seed", work.stub("seed"), raising=False)
        patch.setattr(module, "save_weights", lambda *args: None, raising=False)
        patch.setattr(module, "save_file", lambda *args: None, raising=False)
        patch.setattr(module, "get_data", work.stub("data", few), raising=False)
        patch.setattr(module, "FitAdam", work.stub("retrained"), raising=False)
        patch.setattr(module, "diff_roar", work.stub("diff_roar", SCORE), raising=False)
        learner = functools.partial(NotedLearner, work)
        patch.setattr(module, "adv_learner", learner, raising=False)
    patch.setattr("safetensors.torch.save_file", lambda *args: None)
    patch.setattr(np, "savez_compressed", lambda *args, **arrays: None)
    patch.setattr(study, "linear_ig", lambda link, w, x, *rest: torch.ones_like(x))
    patch.setattr(study, "is_correct", per_example)
    replace_of_b_and_d(patch, work)
    replace_of_c(patch, work)
    patch.setattr(a, "_trained", lambda run, folder: work.note("model", run.name))
    card = SimpleNamespace(to_json=lambda orient: "[]")
    patch.setattr(a, "scorecard", work.stub("card", card))


def replace_of_b_and_d(patch, work):
    norms = SimpleNamespace(true=torch.ones(2), others=torch.ones(2))
    patch.setattr(b, "gradient_norms", work.stub("norms", norms))

    def targets(teacher, x, y, cache=None, **how):  # the name of the cache holds all settings
        work.note("targets", x, y, **how)
        return torch.zeros_like(x)

    patch.setattr(b, "smoothgrad_targets", targets)
    toy = functools.partial(load, "block_toy")
    patch.setattr(d, "load", work.stub("load", lambda name, **how: toy(**how)))
    patch.setattr(d, "one_hidden", work.stub("one_hidden", lambda n, width, *rest: toy_net(n)))
    curve = SimpleNamespace(accuracy=np.ones(10))
    patch.setattr(d, "robustness_curve", work.stub("curve", curve))


def toy_net(n_in):
    layers = nn.Sequential(nn.Linear(n_in, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.linspace(0.1, 1, p.numel()).reshape(p.shape))
    return layers


def replace_of_c(patch, work):
    patch.setattr(c, "load", work.stub("load", many_photos))
    patch.setattr(c, "get_data", work.stub("data", functools.partial(photos, work)))
    patch.setattr(c, "_resized", work.stub("resized", lambda images, size: torch.as_tensor(images)))
    patch.setattr(c, "tensor_dls", work.stub("loaders", lambda *_, **__: few("cifar10")))
    patch.setattr(c, "_examples", work.stub("examples", examples))

    def harmonise(eps, maps_of, **how):
        work.note("harmonise", eps, maps_of(torch.zeros(1), None), **how)
        return SimpleNamespace()

    patch.setattr(c, "Harmonise", harmonise)
    similar = SimpleNamespace(**dict.fromkeys(("overlap", "ssim", "dice"), torch.ones(2, 2)))
    patch.setattr(c, "map_robustness", work.stub("left", SimpleNamespace(attacked=similar)))
    patch.setattr(c, "map_stability", work.stub("stable", similar))
    patch.setattr(c, "aopc_morf", work.stub("aopc", per_example))
    patch.setattr(c, "softplus_copy", lambda model: "smooth")
    patch.setattr(c, "_trained", work.stub("model", lambda job, runs: job.label))


def work_of(func, settings):
    """What a job does, as text; the error where it is refused."""
    work = Work()
    module, function = func.split(":")
    settings = json.loads(json.dumps(settings))  # as from a study on disk
    with pytest.MonkeyPatch.context() as patch:
        replace(patch, work)
        run = getattr(dict(a=a, b=b, c=c, d=d, study=study)[module.split(".")[-1]], function)
        torch.manual_seed(0)
        try:
            row = run(Path("study/runs/run"), lambda *done: None, **settings)
        except Exception as error:  # what cannot go together is not passed over
            return f"refused: {error}"
    return json.dumps([work.calls, seen(row)])


# ---------------------------------------------------------------- what may stand in a setting

OTHER_WORDS = dict(
    data=["cells", "cifar10", "mnist", "spambase", "block_mnist"],
    net=["small", "pooled", "small_conv", "madry_cnn"],
    model=["small_conv", "one_layer"],
    method=["natural", "adversarial", "interp", "standard"],
    norm=["l1", "l2"],
    gradient=["l1", "l2"],
    weights=["l1", "l2"],
    protocol=["fast", "noise"],
    labels=["permuted"],
    output=["logit", "loss"],
    optimiser=["sgd", "adam"],
    split=["code", "paper"],
    preset=["quick", "paper"],
)
OF_NONE = dict(n_train=7, n_test=3, n=5, step_size=0.003, n_signal=5, bounds=[0.0, 0.7])


def others(name, value):
    """Values of the same kind."""
    if name in OTHER_WORDS and not isinstance(value, dict):
        return [word for word in OTHER_WORDS[name] if word != value]
    if value is None:
        return [OF_NONE[name]] if name in OF_NONE else []
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list):
        shorter = [value[1:]] if value else [[0.4]]
        are_numbers = bool(value) and isinstance(value[0], (int, float))
        return [[0.9 * part for part in value], *shorter] if are_numbers else shorter
    return [value + 1, 2, 0.7] if isinstance(value, int) else [0.7 * value, value + 0.01]


def paths_of(settings, start=()):
    """The settings, those of settings in settings too."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from paths_of(value, (*start, name))
        elif name != "device":  # where it runs, not what
            yield (*start, name)


def inside(settings, path):
    for name in path:
        settings = settings[name]
    return settings


def changed(settings, path, value):
    first, *rest = path
    return settings | {first: changed(settings[first], rest, value) if rest else value}


def kind_of(value):
    """Settings without their numbers."""
    if isinstance(value, dict):
        return {name: kind_of(part) for name, part in value.items()}
    return 0 if isinstance(value, (int, float, list)) and not isinstance(value, bool) else value


def short(job):
    """The settings with few epochs where the training is done and not noted."""
    settings = json.loads(json.dumps(job.settings))
    return settings | dict(epochs=2, bs=5_000) if job.func.endswith("d:run_one") else settings


def jobs_of(paper, preset):
    """One job of each kind: (function, settings)."""
    found = {}
    for item in find_items(paper):
        for job in item.jobs(preset, "cpu") if preset in item.presets else ():
            kind = json.dumps([job.func, kind_of(job.settings)], sort_keys=True)
            found.setdefault(kind, (job.func, short(job)))
    return list(found.values())


def without_effect(jobs):
    """The settings that no change of which changes the work of a job: (function, setting)."""
    known = {}
    reached = {}
    for func, settings in jobs:
        for path in paths_of(settings):
            key = func, ".".join(path)
            value = inside(settings, path)
            if not others(path[-1], value) or reached.setdefault(key, False):
                continue
            text = json.dumps([func, settings], sort_keys=True)
            if text not in known:
                known[text] = work_of(func, settings)
            for other in others(path[-1], value):
                if work_of(func, changed(settings, path, other)) != known[text]:
                    reached[key] = True
                    break
    return sorted(key for key, is_reached in reached.items() if not is_reached)


# In the names of kept rows, and without effect: robustness was named by all numbers of its preset,
# of which two are of fidelity; a run of paper A trains at its own strength, `lam` is the published.
OF_KEPT_NAMES = dict(
    A=[("advinterp.study:run_one", "recipe.lam")],
    C=[("advinterp.papers.c:robust_c", "aopc"), ("advinterp.papers.c:robust_c", "patch")],
)
PRESETS = [*((paper, preset) for paper in "ABCD" for preset in ("quick", "paper")), ("D", "public")]


@pytest.mark.parametrize("paper, preset", PRESETS)
def test_every_setting_reaches_the_work(paper, preset):
    jobs = jobs_of(paper, preset)
    assert len(jobs) > 5
    refused = [work for job in jobs if (work := work_of(*job)).startswith("refused")]
    assert refused == []
    assert without_effect(jobs) == OF_KEPT_NAMES.get(paper, [])
