"""The optimum of a robust problem by CVXPY, an independent route for solver and estimator."""

import numpy as np
import pytest

from advinterp.solver import EpsBall1, RobustProblem


def optimum_by_cvxpy(prob: RobustProblem) -> tuple[float, np.ndarray, float]:
    """The least objective that CVXPY finds, and the weights and the intercept that have it."""
    cp = pytest.importorskip("cvxpy", reason="CVXPY is an optional peer: pip install .[peers]")
    w, b = cp.Variable(prob.X.shape[1]), cp.Variable()
    stretched = cp.multiply(prob.ball.e, w)
    if isinstance(prob.ball, EpsBall1):
        R = cp.norm_inf(stretched)
    else:
        groups = prob.ball.groups
        R = sum(cp.norm(stretched[np.flatnonzero(groups == k)]) for k in np.unique(groups))
    scores = (prob.X - prob.mean) / prob.scale @ w + b
    clean = cp.abs(prob.y - scores) if prob.loss.signed else -cp.multiply(prob.y, scores)
    z = R + clean
    losses = dict(
        Softplus=lambda: cp.logistic(z + prob.loss.shift),
        HingeLoss=lambda: cp.pos(1 + z),
        Squared=lambda: cp.square(z) / 2,
        Absolute=lambda: z,
    )
    objective = prob.q @ losses[type(prob.loss).__name__]() + prob.l1 @ cp.abs(w)
    objective += cp.sum(cp.multiply(prob.l2, cp.square(w))) / 2
    held = [] if prob.fit_intercept else [b == 0]
    least = cp.Problem(cp.Minimize(objective), held).solve(solver="CLARABEL")
    return least, w.value, float(b.value) * prob.fit_intercept
