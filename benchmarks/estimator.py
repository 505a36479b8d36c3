"""Speed and results of the exact estimators, as ratios measured in one run.

python benchmarks/estimator.py speed    # beside SGD on the same objective, scikit-learn's l1, CVXPY
python benchmarks/estimator.py peers    # CPU time over that of skglm, celer, liblinear (those that
                                        # are installed), each with as many weights
python benchmarks/estimator.py goals    # CPU time of what a user waits for, beside what is aimed at
python benchmarks/estimator.py growth   # with rows and columns (--full: to 1e6 x 50, 2000 x 20000)
python benchmarks/estimator.py tables   # Chalasani et al. 2020, Table 1 and Fig. 3, 20 splits: the
                                        # exact optimum beside SGD (needs ADVINTERP_DATA)
python benchmarks/estimator.py refits   # accuracy and robust accuracy that a refit changes
python benchmarks/estimator.py null     # features taken on noise, with and without folds
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import sparse, special
from scipy.stats import t as student
from sklearn.datasets import load_breast_cancer, make_blobs, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

from advinterp.data import load
from advinterp.estimator import (
    AdversarialClassifier,
    AdversarialClassifierCV,
    AdversarialRegressor,
    adversarial_path,
    class_strengths,
)
from advinterp.metrics import gini


def best_of(function, n_calls=3):
    "Result and shortest wall time of the calls."
    times = []
    for _ in range(n_calls):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def sgd(X, y, eps=0.0, lam=0.0, epochs=30, batch_size=32, lr=0.01, seed=0):
    """Mini-batch Adam on the closed-form robust loss plus lam |w|_1, the paper's protocol.

    Returns weights and intercept; labels are -1 and +1.
    """
    rng = np.random.default_rng(seed)
    n, d = X.shape
    Z = y[:, None] * np.c_[X, np.ones(n)]
    v = np.zeros(d + 1)  # weights and intercept
    first = np.zeros(d + 1)  # moments of Adam
    second = np.zeros(d + 1)
    n_steps = 0
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n, batch_size):
            batch = Z[order[start : start + batch_size]]
            w = np.append(v[:-1], 0)
            a = special.expit(eps * np.abs(w).sum() - batch @ v) / len(batch)
            grad = (eps * a.sum() + lam) * np.sign(w) - a @ batch
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad * grad
            n_steps += 1
            mean = first / (1 - 0.9**n_steps)
            spread = np.sqrt(second / (1 - 0.999**n_steps))
            v = v - lr * mean / (spread + 1e-8)
    return v[:-1], v[-1]


def sgd_torch(X, y, eps, epochs=30, batch_size=32, lr=0.01, seed=0):
    "The same in torch, as the paper's code trains: autograd through the closed-form robust loss."
    torch.manual_seed(seed)
    X = torch.tensor(X, dtype=torch.float)
    y = torch.tensor(y, dtype=torch.float)
    w = torch.zeros(X.shape[1], requires_grad=True)
    b = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([w, b], lr=lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(batch_size):
            z = eps * w.abs().sum() - y[rows] * (X[rows] @ w + b)
            loss = torch.nn.functional.softplus(z).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return w.detach().double().numpy(), b.item()


def objective(X, y, w, b, eps):
    return np.logaddexp(0, eps * np.abs(w).sum() - y * (X @ w + b)).mean()


# --- speed ---


def made_table(n, d):
    "A standardised table like Spambase and Mushroom: 10 % of the labels are noise."
    X, y = make_classification(
        n, d, n_informative=d // 4, n_redundant=0, flip_y=0.1, class_sep=1.2, random_state=0
    )
    return (X - X.mean(0)) / X.std(0), y


def sklearn_at_equal_sparsity(X, y, solver, n_nonzero):
    "scikit-learn's l1 model with as many weights, and its time; C by bisection over a grid."

    def fit(C):
        return LogisticRegression(
            C=C, l1_ratio=1.0, solver=solver, tol=1e-4, max_iter=1000, random_state=0
        ).fit(X, y)

    grid = np.geomspace(1e-4, 1, 60)
    low, high = 0, len(grid) - 1
    while low < high:
        mid = (low + high) // 2
        if np.count_nonzero(fit(grid[mid]).coef_) >= n_nonzero:
            high = mid
        else:
            low = mid + 1
    return best_of(lambda: fit(grid[low]))


def by_cvxpy(X, signs, eps):
    "Weights, intercept and time of CVXPY with Clarabel; None where it is not installed."
    try:
        import cvxpy as cp
    except ImportError:
        print("CVXPY is not installed: left out")
        return None
    w, b = cp.Variable(X.shape[1]), cp.Variable()
    losses = cp.logistic(eps * cp.norm1(w) - cp.multiply(signs, X @ w + b))
    problem = cp.Problem(cp.Minimize(cp.sum(losses) / len(signs)))
    _, seconds = best_of(lambda: problem.solve(solver="CLARABEL"), 1)
    return w.value, b.value, seconds


def speed_rows(X, y, eps=0.1, with_cvxpy=True):
    "One row for each way to train on a table: what, seconds, objective, non-zero weights."
    signs = 2.0 * y - 1
    clf, seconds = best_of(lambda: AdversarialClassifier(eps=eps).fit(X, y), 5)
    n_nonzero = np.count_nonzero(clf.coef_)
    yield "exact", seconds, clf.objective_, n_nonzero
    for name, train in (("torch", sgd_torch), ("NumPy, gradient by hand", sgd)):
        (w, b), seconds = best_of(lambda train=train: train(X, signs, eps), 1)
        what = f"mini-batch Adam, 30 epochs, same objective, {name}"
        yield what, seconds, objective(X, signs, w, b, eps), np.count_nonzero(w)
    for solver in ("liblinear", "saga"):
        model, seconds = sklearn_at_equal_sparsity(X, y, solver, n_nonzero)
        what = f"scikit-learn l1 {solver} at equal sparsity (another objective)"
        yield what, seconds, np.nan, np.count_nonzero(model.coef_)
    solution = by_cvxpy(X, signs, eps) if with_cvxpy else None
    if solution:
        w, b, seconds = solution
        n_nonzero = int((np.abs(w) > 1e-6).sum())
        yield "CVXPY with Clarabel", seconds, objective(X, signs, w, b, eps), n_nonzero


def speed():
    tables = []
    for n, d in ((4601, 57), (8124, 120)):
        rows = speed_rows(*made_table(n, d), with_cvxpy=d == 57)  # minutes on the larger one
        table = pd.DataFrame(rows, columns=["what", "seconds", "objective", "nonzero"])
        seconds = table.pop("seconds")
        table.insert(0, "data", f"{n} x {d}")
        table.insert(2, "ms", 1e3 * seconds)
        table.insert(3, "ratio", seconds / seconds.iloc[0])
        tables.append(table)
    table = pd.concat(tables).round({"ms": 1, "ratio": 1, "objective": 6})
    print(table.to_string(index=False))


# --- peers ---


def peer_models():
    "Constructors of l1 logistic models by their inverse strength C per row: those installed."
    models = dict(
        liblinear=lambda C, n: LogisticRegression(
            C=C, l1_ratio=1.0, solver="liblinear", tol=1e-6, max_iter=1000, random_state=0
        )
    )
    try:
        from skglm import SparseLogisticRegression

        models["skglm"] = lambda C, n: SparseLogisticRegression(alpha=1 / (C * n), tol=1e-6)
    except ImportError:
        print("skglm is not installed: left out")
    try:
        from celer import LogisticRegression as Celer

        models["celer"] = lambda C, n: Celer(C=C, tol=1e-6)
    except ImportError:
        print("celer is not installed: left out")
    return models


def made_text(n=20_000, d=50_000, n_words=60):
    "Rows of words drawn by Zipf's law, weighted by their rarity, and labels by 400 of the words."
    rng = np.random.default_rng(0)
    share = 1 / (np.arange(d) + 10)
    share /= share.sum()
    rows = np.repeat(np.arange(n), n_words)
    words = rng.choice(d, n * n_words, p=share)
    X = sparse.csr_matrix((np.ones(n * n_words), (rows, words)), (n, d))
    X.data = 1 + np.log(X.data)
    X = normalize(X @ sparse.diags(np.log(n / (1 + X.getnnz(0))) + 1)).tocsr()
    w = np.zeros(d)
    chosen = rng.choice(d, 400, p=share, replace=False)
    w[chosen] = 8 * rng.normal(size=400)
    scores = X @ w
    return X, scores > np.median(scores) + rng.normal(size=n) / 2


def peer_tables():
    "Name, rows, labels and strengths."
    for name in ("spambase", "mushroom"):
        data = load(name)
        X = data.x.astype(float)
        if name == "spambase":
            X = (X - X.mean(0)) / X.std(0)
        yield name, X, data.y == np.max(data.y), (0.1,)
    for n, d, strengths in ((2000, 2000, (0.1, 0.05)), (1000, 5000, (0.15, 0.1))):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((n, d))
        yield f"{n} x {d}", X, X[:, :10].sum(1) / 2 + rng.standard_normal(n) > 0, strengths
    X, y = made_text()
    top = np.abs(class_strengths(X, y)).max()
    yield "text", X, y, (0.2 * top, 0.05 * top)


def cpu_of(function, n_calls=3):
    "Result and shortest CPU time of the calls."
    times = []
    for _ in range(n_calls):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return result, min(times)


def at_equal_sparsity(make, X, y, n_nonzero):
    "A peer's model with about as many weights, by bisection, and its CPU time."
    low, high = -3.0, 3.0  # of log10 C
    for _ in range(12):
        C = 10 ** ((low + high) / 2)
        found = np.count_nonzero(make(C, len(y)).fit(X, y).coef_)
        if found == n_nonzero:
            break
        low, high = (np.log10(C), high) if found < n_nonzero else (low, np.log10(C))
    return cpu_of(lambda: make(C, len(y)).fit(X, y))


def peers():
    AdversarialClassifier(eps=0.3).fit(*made_table(100, 400))  # compiled once, then kept on disk
    rows = []
    for name, X, y, strengths in peer_tables():
        X = X if sparse.issparse(X) else np.asfortranarray(X)
        columns = sparse.csc_matrix(X) if sparse.issparse(X) else X  # as the peers like it
        signs = np.where(y, 1, -1)
        for eps in strengths:
            clf, ours = cpu_of(lambda X=X, y=y, eps=eps: AdversarialClassifier(eps=eps).fit(X, y))
            n_nonzero = np.count_nonzero(clf.coef_)
            row = dict(data=name, eps=round(eps, 5), nonzero=n_nonzero, gap=clf.gap_, ours=ours)
            for peer, make in peer_models().items():
                model, theirs = at_equal_sparsity(make, columns, signs, n_nonzero)
                row[f"{peer} nonzero"] = np.count_nonzero(model.coef_)
                row[f"ours / {peer}"] = round(ours / theirs, 2)
            rows.append(row)
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)


# --- goals ---


def goal_runs():
    "What a user waits for, the seconds of CPU time aimed at, and the function that does it."
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((100, 2000))
    noisy = wide[:, :10].sum(1) + rng.standard_normal(100) > 0
    yield "choice of eps on 100 x 2000", 3.0, lambda: AdversarialClassifierCV().fit(wide, noisy)
    blobs, classes = make_blobs(5000, 20, centers=100, random_state=0)
    blobs = (blobs - blobs.mean(0)) / blobs.std(0)
    yield "100 classes, 5000 x 20", 1.0, lambda: AdversarialClassifier(0.1).fit(blobs, classes)
    data = load("spambase")
    X = data.x.astype(float)
    X = (X - X.mean(0)) / X.std(0)
    hinge = AdversarialClassifier(0.1, loss="hinge")
    yield "hinge on Spambase", 0.1, lambda: hinge.fit(X, data.y)
    by_norm = AdversarialRegressor(0.1, norm=2)
    yield "squared loss, norm 2, on Spambase", 0.1, lambda: by_norm.fit(X, data.y)
    grid = np.linspace(0.01, 0.3, 30)

    def paths():
        for seed in range(20):
            path_of_split(X, data.y, seed, grid)

    yield "30 eps x 20 splits of Spambase", 3.0, paths


def goals():
    AdversarialClassifier(eps=0.3).fit(*made_table(100, 400))  # compiled once, then kept on disk
    for what, goal, run in goal_runs():
        _, seconds = cpu_of(run, 1 if goal > 1 else 3)
        print(f"{what:34} {seconds:6.2f} s of CPU time, goal {goal} s", flush=True)


# --- growth ---


def growth(full=False):
    by_rows = [(1_000, 50), (10_000, 50), (100_000, 50)]
    by_columns = [(2_000, 200), (2_000, 2_000)]
    if full:
        by_rows.append((1_000_000, 50))
        by_columns.append((2_000, 20_000))
    measured = []
    for n, d in by_rows + by_columns:
        rng = np.random.default_rng(0)
        X = rng.standard_normal((n, d))
        w = np.zeros(d)
        w[:10] = 0.5
        y = X @ w + rng.standard_normal(n) > 0
        clf, seconds = best_of(lambda X=X, y=y: AdversarialClassifier(eps=0.1).fit(X, y), 1)
        row = dict(
            n=n,
            d=d,
            seconds=seconds,
            ns_per_entry=1e9 * seconds / (n * d),
            iterations=clf.n_iter_[0],
            nonzero=np.count_nonzero(clf.coef_),
            gap=clf.gap_,
        )
        measured.append(row)
    print(pd.DataFrame(measured).to_string(index=False))


# --- the paper's tables ---


def train_and_test(X, y, seed):
    return train_test_split(X, y, test_size=0.2, random_state=seed)


def path_of_split(X, y, seed, grid):
    "The exact path of one 80/20 split: its frame and its CPU time."
    X_train, X_test, y_train, y_test = train_and_test(X, y, seed)
    start = time.process_time()
    test = dict(X_test=X_test, y_test=y_test, baseline=0.0)  # the paper's baseline
    path = adversarial_path(X_train, y_train, grid, **test)
    return path.frame, time.process_time() - start


def models_of_split(X, y, seed, eps, lam):
    "Accuracy and mean Gini index of the rows of Table 1 on one split, by SGD and exactly."
    X_train, X_test, y_train, y_test = train_and_test(X, y, seed)
    signs = 2.0 * y_train - 1
    by_sgd = dict(natural=dict(), l1=dict(lam=lam), adversarial=dict(eps=eps))
    exact = dict(
        natural=dict(eps=0, alpha_l2=1 / len(X_train)),
        l1=dict(eps=0, alpha_l1=lam),
        adversarial=dict(eps=eps),
    )
    models = {f"SGD {name}": sgd(X_train, signs, **kwargs) for name, kwargs in by_sgd.items()}
    for name, kwargs in exact.items():
        clf = AdversarialClassifier(**kwargs).fit(X_train, y_train)
        models[f"exact {name}"] = clf.coef_[0], clf.intercept_[0]
    rows = []
    for name, (w, b) in models.items():
        accuracy = np.mean((X_test @ w + b > 0) == y_test)
        maps = torch.tensor(X_test * w)  # their Gini index is that of the attributions
        rows.append(dict(seed=seed, model=name, accuracy=accuracy, gini=float(gini(maps).mean())))
    return pd.DataFrame(rows)


def interval(values):
    "Mean and 95 % interval of the mean."
    n = len(values)
    half = np.std(values, ddof=1) / n**0.5 * student.ppf(0.975, n - 1)
    return f"{np.mean(values):.4f} +- {half:.4f}"


def table_1(measured):
    "Accuracy, Gini index and their differences to the natural model over the splits."
    by_model = {name: rows.reset_index() for name, rows in measured.groupby("model", sort=False)}
    table = []
    for name, rows in by_model.items():
        natural = by_model[f"{name.split()[0]} natural"]
        row = dict(
            model=name,
            accuracy=interval(rows.accuracy),
            gini=interval(rows.gini),
            dG=interval(rows.gini - natural.gini),
            drop=interval(natural.accuracy - rows.accuracy),
        )
        table.append(row)
    return pd.DataFrame(table)


def tables(n_splits=20, names=("mushroom", "spambase"), eps=0.1, lam=0.02):
    grid = np.linspace(0.01, 0.3, 30)
    parallel = Parallel(2)
    for name in names:
        data = load(name)
        X, y = data.x.astype(float), data.y
        if name == "spambase":
            X = (X - X.mean(0)) / X.std(0)  # as the authors' files are
        # the workers' imports are not the solver's time
        parallel(delayed(path_of_split)(X, y, seed, grid[-1:]) for seed in range(2))
        start = time.perf_counter()
        paths = parallel(delayed(path_of_split)(X, y, seed, grid) for seed in range(n_splits))
        wall = time.perf_counter() - start
        models = parallel(
            delayed(models_of_split)(X, y, seed, eps, lam) for seed in range(n_splits)
        )
        cpu = sum(seconds for _, seconds in paths)
        print(
            f"\n{name}: {len(grid)} eps x {n_splits} splits in {wall:.1f} s on 2 workers, "
            f"{cpu:.1f} s of CPU time; eps={eps}, lambda={lam}; "
            "mean and 95 % interval of the mean"
        )
        print(table_1(pd.concat(models)).to_string(index=False))
        figure_3 = pd.concat(frame for frame, _ in paths).groupby("eps")
        measures = figure_3[["accuracy", "robust_accuracy", "gini", "n_active"]].mean()
        print(measures.iloc[::3].round(4).to_string())


# --- more than l1: refits, and strengths without cross-validation ---


def refits(n_splits=20, grid=(0.05, 0.1, 0.2)):
    "What a refit changes on test rows: accuracy and robust accuracy, over halves of three tables."
    tables = {name: load(name)[:2] for name in ("mushroom", "spambase")}
    tables["breast cancer"] = load_breast_cancer(return_X_y=True)
    for name, (X, y) in tables.items():
        X = np.asarray(X, float)
        if name != "mushroom":
            X = (X - X.mean(0)) / X.std(0)
        for refit in ("scale", "relaxed"):
            changes = []
            for seed in range(n_splits):
                parts = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
                test = dict(X_test=parts[1], y_test=parts[3])
                frame = adversarial_path(parts[0], parts[2], grid, refit=refit, **test).frame
                for measure in ("accuracy", "robust_accuracy"):
                    frame[measure] -= frame[f"solved_{measure}"]
                changes.append(frame)
            for eps, rows in pd.concat(changes).groupby("eps"):
                print(
                    f"{name:14} {refit:8} eps {eps:4}: accuracy {interval(rows.accuracy)}, "
                    f"robust {interval(rows.robust_accuracy)}",
                    flush=True,
                )


def null(n_tables=20, n=200, d=100):
    "Features taken on pure noise and beside five true ones: by `eps='null'` and cross-validation."
    models = {
        "eps='null'": AdversarialClassifier(eps="null"),
        "CV": AdversarialClassifierCV(),
        "CV, level=1": AdversarialClassifierCV(level=1),
    }
    for strength in (0.0, 1.0):
        for name, model in models.items():
            found = np.zeros((n_tables, 2))
            start = time.process_time()
            for seed in range(n_tables):
                rng = np.random.default_rng(seed)
                X, y = rng.normal(size=(n, d)), np.arange(n) % 2
                X[:, :5] += strength * y[:, None]
                on = model.fit(X, y).coef_[0] != 0
                found[seed] = on[:5].sum(), on[5:].sum()
            seconds = (time.process_time() - start) / n_tables
            print(
                f"strength {strength}: {name:12} first five {interval(found[:, 0])}, "
                f"others {interval(found[:, 1])}, {1000 * seconds:.0f} ms",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="speed", choices=list(RUNS))
    parser.add_argument("--full", action="store_true", help="growth: the largest tables too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # separable rows are named in the paths
    if options.what == "growth":
        growth(options.full)
    else:
        RUNS[options.what]()


RUNS = dict(
    speed=speed,
    peers=peers,
    goals=goals,
    growth=growth,
    tables=tables,
    refits=refits,
    null=null,
)

if __name__ == "__main__":
    main()
