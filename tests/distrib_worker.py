"""One training run per protocol, for test_train.py: alone, or as one of two processes (`accelerate launch --multi_gpu --num_processes 2`; ACCELERATE_USE_CPU=true keeps it off the GPU).

python distrib_worker.py FOLDER   writes FOLDER/<number of processes>.pt: parameters and validation columns of each protocol
"""

import os
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from fastai.basics import SGD, num_distrib, rank_distrib
from torch import nn

from advinterp.adversary import PGD
from advinterp.callbacks import RobustMetrics
from advinterp.core import set_seed
from advinterp.data import tensor_dls
from advinterp.duals import L1, L2Ball, LInfBall
from advinterp.penalty import GradNorm
from advinterp.train import adv_learner

N, BS, WORLD = 64, 16, 2
PGD3 = dict(
    steps=3, random_start=False
)  # random starts follow from the batch, which each process has its own of

PROTOCOLS = dict(
    natural=lambda l: l,
    pgd=lambda l: l.adversarial(PGD(LInfBall(0.1), **PGD3)),
    mixed=lambda l: l.adversarial(PGD(L2Ball(0.5), **PGD3), alpha=0.5),
    free=lambda l: l.adversarial(LInfBall(0.1), 3),
    penalty=lambda l: l.penalise(GradNorm(L1(0.05))).adversarial(PGD(LInfBall(0.1), **PGD3)),
)


def loaders():
    "The data, in the order in which the joint batches of two processes meet them; half a batch for each of several processes."
    set_seed(0)
    x, y = torch.rand(N, 1, 4, 4).double(), torch.arange(N) % 3
    if num_distrib() <= 1:
        half = BS // WORLD
        order = torch.cat(
            [
                torch.arange(i, i + half) + r * N // WORLD
                for i in range(0, N // WORLD, half)
                for r in range(WORLD)
            ]
        )
        x, y = x[order], y[order]
    bs = BS // max(num_distrib(), 1)
    dls = tensor_dls(x, y, x, y, bs=bs, val_bs=bs, device="cpu")
    dls.train.shuffle = False
    return dls


def run(setup):
    dls = loaders()
    set_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    learn = setup(
        adv_learner(
            dls, model, opt_func=SGD, lr=0.5, cbs=RobustMetrics(PGD(LInfBall(0.05), **PGD3))
        )
    )
    with (
        learn.distrib_ctx(sync_bn=False) if num_distrib() > 1 else learn.no_logging(),
        learn.no_bar(),
        learn.no_logging(),
    ):
        learn.fit(2)
    assert learn.model is model and model.training is False
    return dict(
        params=[p.detach() for p in model.parameters()],
        columns=[float(v) for v in learn.recorder.values[-1][1:]],
    )


if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import fastai.distributed

        def _broadcast(self, t, rank):  # fastai's goes through the GPU, whatever the backend
            t = torch.LongTensor(t)
            torch.distributed.broadcast(t, rank)
            return t.tolist()

        fastai.distributed.DistributedDL._broadcast = _broadcast
        from accelerate import Accelerator

        Accelerator(cpu=True)
    res = {k: run(f) for k, f in PROTOCOLS.items()}
    if not rank_distrib():
        torch.save(res, f"{sys.argv[1]}/{max(num_distrib(), 1)}.pt")
    if (
        torch.distributed.is_initialized()
    ):  # leave together: a thread of the other process may still be talking to this one
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        os._exit(0)  # gloo's threads do not always end before the interpreter does
