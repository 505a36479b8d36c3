"""One training run per protocol, for test_train.py: alone, or as one of two processes.

python distrib_worker.py FOLDER   writes FOLDER/<number of processes>.pt: parameters and
                                  validation columns of each protocol

Two processes: `accelerate launch --multi_gpu --num_processes 2`; ACCELERATE_USE_CPU=true keeps
them off the GPU.
"""

import os
import sys
from functools import partial

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

# random starts would follow from the batch, which each process has its own of
pgd = partial(PGD, steps=3, random_start=False)


def natural(learn):
    return learn


def attacked(learn):
    return learn.adversarial(pgd(LInfBall(0.1)))


def mixed(learn):
    return learn.adversarial(pgd(L2Ball(0.5)), alpha=0.5)


def free(learn):
    return learn.adversarial(LInfBall(0.1), 3)


def penalised(learn):
    return learn.penalise(GradNorm(L1(0.05))).adversarial(pgd(LInfBall(0.1)))


PROTOCOLS = [natural, attacked, mixed, free, penalised]


def joint_order():
    "The rows in the order in which the joint batches of `WORLD` processes meet them."
    half = BS // WORLD
    share = N // WORLD
    starts = [i + rank * share for i in range(0, share, half) for rank in range(WORLD)]
    return torch.cat([torch.arange(start, start + half) for start in starts])


def loaders():
    "The data in one order, in half batches for each of several processes."
    set_seed(0)
    x = torch.rand(N, 1, 4, 4).double()
    y = torch.arange(N) % 3
    if num_distrib() <= 1:
        order = joint_order()
        x, y = x[order], y[order]
    bs = BS // max(num_distrib(), 1)
    dls = tensor_dls(x, y, x, y, bs=bs, val_bs=bs, device="cpu")
    dls.train.shuffle = False
    return dls


def run(protocol):
    dls = loaders()
    set_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    judge = RobustMetrics(pgd(LInfBall(0.05)))
    learn = protocol(adv_learner(dls, model, opt_func=SGD, lr=0.5, cbs=judge))
    several = num_distrib() > 1
    distributed = learn.distrib_ctx(sync_bn=False) if several else learn.no_logging()
    with distributed, learn.no_bar(), learn.no_logging():
        learn.fit(2)
    assert learn.model is model
    assert not model.training
    return dict(
        params=[param.detach() for param in model.parameters()],
        columns=[float(value) for value in learn.recorder.values[-1][1:]],
    )


def join():
    "Meet the other processes on the CPU; fastai's own way goes through the GPU."
    import fastai.distributed
    from accelerate import Accelerator

    def _broadcast(self, values, rank):
        values = torch.LongTensor(values)
        torch.distributed.broadcast(values, rank)
        return values.tolist()

    fastai.distributed.DistributedDL._broadcast = _broadcast
    Accelerator(cpu=True)


def leave():
    "End together: a thread of the other process may still be talking to this one."
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads do not always end before the interpreter does


if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        join()
    results = {protocol.__name__: run(protocol) for protocol in PROTOCOLS}
    if not rank_distrib():
        torch.save(results, f"{sys.argv[1]}/{max(num_distrib(), 1)}.pt")
    if torch.distributed.is_initialized():
        leave()
