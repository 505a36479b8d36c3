"""Speed and results of the exact estimators, as ratios measured in one run.

python benchmarks/estimator.py speed     # against SGD on the same objective, scikit-learn's l1, and CVXPY
python benchmarks/estimator.py growth    # with rows and columns (--full: up to 1e6 x 50 and 2000 x 20000)
python benchmarks/estimator.py tables    # Chalasani et al. 2020, Table 1 and Fig. 3: exact optimum beside SGD, 20 splits (needs ADVINTERP_DATA)
"""

import sys
import time
import warnings

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import special
from scipy.stats import t as student
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from advinterp.estimator import AdversarialClassifier, _mean_gini, adversarial_path


def best_of(f, n=3):
    "Result and shortest wall time of n calls."
    times = []
    for _ in range(n):
        t = time.perf_counter()
        out = f()
        times.append(time.perf_counter() - t)
    return out, min(times)


def sgd(X, y, eps=0.0, lam=0.0, epochs=30, batch=32, lr=0.01, seed=0):
    "Mini-batch Adam on the closed-form robust loss plus lam |w|_1, the paper's protocol; weights and intercept."
    rng, n, d = np.random.default_rng(seed), *X.shape
    v, m, s, k = np.zeros(d + 1), np.zeros(d + 1), np.zeros(d + 1), 0
    Z = y[:, None] * np.c_[X, np.ones(n)]
    for _ in range(epochs):
        order = rng.permutation(n)
        for i in range(0, n, batch):
            B = Z[order[i : i + batch]]
            w = np.append(v[:-1], 0)
            k += 1
            a = special.expit(eps * np.abs(w).sum() - B @ v) / len(B)
            g = (eps * a.sum() + lam) * np.sign(w) - a @ B
            m = 0.9 * m + 0.1 * g
            s = 0.999 * s + 0.001 * g * g
            v = v - lr * (m / (1 - 0.9**k)) / (np.sqrt(s / (1 - 0.999**k)) + 1e-8)
    return v[:-1], v[-1]


def sgd_torch(X, y, eps, epochs=30, batch=32, lr=0.01, seed=0):
    "The same in torch, as the paper's code trains: autograd through the closed-form robust loss."
    import torch

    torch.manual_seed(seed)
    X, y = torch.tensor(X, dtype=torch.float), torch.tensor(y, dtype=torch.float)
    w, b = torch.zeros(X.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    opt = torch.optim.Adam([w, b], lr=lr)
    for _ in range(epochs):
        for B in torch.randperm(len(X)).split(batch):
            loss = torch.nn.functional.softplus(eps * w.abs().sum() - y[B] * (X[B] @ w + b)).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    return w.detach().double().numpy(), b.item()


def objective(X, y, w, b, eps):
    return np.logaddexp(0, eps * np.abs(w).sum() - y * (X @ w + b)).mean()


def tables_like():
    "Data of the sizes of Spambase and Mushroom."
    for name, n, d in (("4601 x 57", 4601, 57), ("8124 x 120", 8124, 120)):
        X, y = make_classification(
            n, d, n_informative=d // 4, n_redundant=0, flip_y=0.1, class_sep=1.2, random_state=0
        )
        yield name, (X - X.mean(0)) / X.std(0), y


def speed():
    rows = []
    for name, X, y in tables_like():
        s, eps = 2.0 * y - 1, 0.1
        clf, base = best_of(lambda: AdversarialClassifier(eps=eps).fit(X, y), 5)

        def add(what, seconds, obj, nnz):
            rows.append(
                dict(
                    data=name,
                    what=what,
                    ms=1e3 * seconds,
                    ratio=seconds / base,
                    objective=obj,
                    nonzero=nnz,
                )
            )

        add("exact", base, clf.objective_, np.count_nonzero(clf.coef_))
        for what, train in (("torch", sgd_torch), ("NumPy, gradient by hand", sgd)):
            (w, b), t = best_of(lambda: train(X, s, eps), 1)
            add(
                f"mini-batch Adam, 30 epochs, same objective, {what}",
                t,
                objective(X, s, w, b, eps),
                np.count_nonzero(w),
            )
        nnz = np.count_nonzero(clf.coef_)
        for solver in ("liblinear", "saga"):
            C = np.geomspace(1e-4, 1, 60)  # the C with the same number of weights

            def l1(c):
                return LogisticRegression(
                    C=c, l1_ratio=1.0, solver=solver, tol=1e-4, max_iter=1000, random_state=0
                ).fit(X, y)

            lo, hi = 0, len(C) - 1
            while lo < hi:
                mid = (lo + hi) // 2
                lo, hi = (lo, mid) if np.count_nonzero(l1(C[mid]).coef_) >= nnz else (mid + 1, hi)
            m, t = best_of(lambda: l1(C[lo]), 3)
            add(
                f"scikit-learn l1 {solver} at equal sparsity (another objective)",
                t,
                np.nan,
                np.count_nonzero(m.coef_),
            )
        if name != "4601 x 57":
            continue  # minutes on the larger one
        try:
            import cvxpy as cp
        except ImportError:
            print("CVXPY is not installed: left out")
            continue
        w, b = cp.Variable(X.shape[1]), cp.Variable()
        prob = cp.Problem(
            cp.Minimize(cp.sum(cp.logistic(eps * cp.norm1(w) - cp.multiply(s, X @ w + b))) / len(s))
        )
        _, t = best_of(lambda: prob.solve(solver="CLARABEL"), 1)
        add(
            "CVXPY with Clarabel",
            t,
            objective(X, s, w.value, b.value, eps),
            int((np.abs(w.value) > 1e-6).sum()),
        )
    print(pd.DataFrame(rows).round({"ms": 1, "ratio": 1, "objective": 6}).to_string(index=False))


def growth(full=False):
    rows = []
    for n, d in (
        [(1_000, 50), (10_000, 50), (100_000, 50)]
        + [(1_000_000, 50)] * full
        + [(2_000, 200), (2_000, 2_000)]
        + [(2_000, 20_000)] * full
    ):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((n, d))
        w = np.zeros(d)
        w[:10] = 0.5
        y = X @ w + rng.standard_normal(n) > 0
        clf, t = best_of(lambda: AdversarialClassifier(eps=0.1).fit(X, y), 1)
        rows.append(
            dict(
                n=n,
                d=d,
                seconds=t,
                ns_per_entry=1e9 * t / (n * d),
                iterations=clf.n_iter_[0],
                nonzero=np.count_nonzero(clf.coef_),
                gap=clf.gap_,
            )
        )
    print(pd.DataFrame(rows).to_string(index=False))


def _split(X, y, seed, eps, eps_grid, lam):
    "One 80/20 split: the exact path, and the SGD-trained rows of Table 1."
    a, b, ya, yb = train_test_split(X, y, test_size=0.2, random_state=seed)
    t = time.perf_counter()
    path = adversarial_path(a, ya, eps_grid, X_test=b, y_test=yb).frame
    t = time.perf_counter() - t

    def row(w, c):
        return np.mean((b @ w + c > 0) == yb), _mean_gini(w[None], np.zeros(len(b), int), b, 0.0)

    s, at = 2.0 * ya - 1, {}
    for name, kw in (("natural", {}), ("l1", dict(lam=lam)), ("adversarial", dict(eps=eps))):
        at[f"SGD {name}"] = row(*sgd(a, s, **kw))
    for name, kw in (
        ("natural", dict(eps=0, alpha_l2=1 / len(a))),
        ("l1", dict(eps=0, alpha_l1=lam)),
        ("adversarial", dict(eps=eps)),
    ):
        m = AdversarialClassifier(**kw).fit(a, ya)
        at[f"exact {name}"] = row(m.coef_[0], m.intercept_[0])
    return path, at, t


def tables(splits=20, names=("mushroom", "spambase")):
    from advinterp.data import load

    for name, eps, lam in [(n, 0.1, 0.02) for n in names]:
        d = load(name)
        X, y = d.x.astype(float), d.y
        if name == "spambase":
            X = (X - X.mean(0)) / X.std(0)  # as the authors' files are
        grid = np.linspace(0.01, 0.3, 30)
        Parallel(2)(
            delayed(_path_only)(X, y, i, grid[-1:]) for i in range(2)
        )  # the workers' imports are not the solver's time
        start = time.perf_counter()
        cpu = sum(Parallel(2)(delayed(_path_only)(X, y, i, grid) for i in range(splits)))
        took = time.perf_counter() - start
        out = Parallel(2)(delayed(_split)(X, y, i, eps, grid, lam) for i in range(splits))

        def ci(v):
            v = np.asarray(v)
            return f"{v.mean():.4f} +- {v.std(ddof=1) / len(v) ** 0.5 * student.ppf(0.975, len(v) - 1):.4f}"

        print(
            f"\n{name}: {len(grid)} eps x {splits} splits in {took:.1f} s on 2 workers, {cpu:.1f} s of CPU time; eps={eps}, lambda={lam}; mean and 95 % interval of the mean"
        )
        tab = pd.DataFrame([o[1] for o in out])
        print(
            pd.DataFrame(
                [
                    dict(
                        model=k,
                        accuracy=ci([v[0] for v in tab[k]]),
                        gini=ci([v[1] for v in tab[k]]),
                        dG=ci(
                            [v[1] - u[1] for u, v in zip(tab[f"{k.split()[0]} natural"], tab[k])]
                        ),
                        drop=ci(
                            [u[0] - v[0] for u, v in zip(tab[f"{k.split()[0]} natural"], tab[k])]
                        ),
                    )
                    for k in tab
                ]
            ).to_string(index=False)
        )
        fig3 = pd.concat([o[0] for o in out])
        print(
            fig3.groupby("eps")[["accuracy", "robust_accuracy", "gini", "n_active"]]
            .mean()
            .iloc[::3]
            .round(4)
            .to_string()
        )


def _path_only(X, y, seed, grid):
    "CPU time of the path of one split."
    a, b, ya, yb = train_test_split(X, y, test_size=0.2, random_state=seed)
    t = time.process_time()
    adversarial_path(a, ya, grid, X_test=b, y_test=yb)
    return time.process_time() - t


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # separable rows are named in the paths
    what = sys.argv[1] if len(sys.argv) > 1 else "speed"
    if what not in ("speed", "growth", "tables"):
        sys.exit(__doc__)
    growth("--full" in sys.argv) if what == "growth" else globals()[what]()
