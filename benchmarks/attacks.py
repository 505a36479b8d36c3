"""Speed and strength of attacks and penalties against a hand-written floor and against other libraries.

    python benchmarks/attacks.py [--cases cnn50 cnn256 cnn50x40 resnet penalties] [--rounds 5] [--device cpu] [--weights FILE]

Each round times every candidate once, in shuffled order; a figure is the median over rounds of the ratio to the floor (or to the natural step) of the same round.
On the CPU, time is the process's CPU time on one thread, which other programs on the machine disturb least. Beside each time stands the mean loss that the attack reached.
Real MNIST images are used where they are found (ADVINTERP_DATA or the cache) and the CNN is trained on them for a moment; else random images and labels, and strength means little.
"""

import argparse
import random
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from advinterp.adversary import PGD, OneStep, has_bf16
from advinterp.core import set_seed, task_loss
from advinterp.duals import L1, L2, LInfBall
from advinterp.models import madry_cnn
from advinterp.penalty import GradNorm, JacobianNorm, TargetMap, WeightNorm


def resnet18_32(n_out=10):
    "torchvision's resnet18 with the stem for 32 x 32 images."
    from torchvision.models import resnet18

    m = resnet18(num_classes=n_out)
    m.conv1, m.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return m


def mnist(n):
    "`n` MNIST test images and labels and a natural CNN's training images, or random ones."
    try:
        from advinterp.data import load

        d = load("mnist")
        return [
            torch.tensor(a[:k]).reshape(-1, 1, 28, 28) if a.ndim > 1 else torch.tensor(a[:k])
            for a, k in ((d.x_test, n), (d.y_test, n), (d.x, 10000), (d.y, 10000))
        ]
    except Exception as e:
        print(f"random images in place of MNIST ({type(e).__name__})")
        return [torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,)), None, None]


def natural(model, x, y, steps=150, bs=64):
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    for i in range(steps if x is not None else 0):
        j = torch.randint(0, len(x), (bs,))
        loss = task_loss(model(x[j]), y[j]).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


# ---------------------------------------------------------------- candidates: callables (x, y) -> x_adv


def floor(model, eps, steps, alpha, bf16=False):
    "The bare loop: gradient with respect to the input only, in-place arithmetic, bounds computed once."
    if bf16:
        model = model.to(memory_format=torch.channels_last)

    def _attack(x, y):
        if bf16:
            x = x.contiguous(memory_format=torch.channels_last)
        lo, hi = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
        z = torch.empty_like(x).uniform_(-eps, eps).add_(x).clamp_(0, 1)
        for _ in range(steps):
            z.requires_grad_()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                out = model(z)
            (g,) = torch.autograd.grad(F.cross_entropy(out.float(), y, reduction="sum"), z)
            z = z.detach().add_(g.sign_(), alpha=alpha).clamp_(lo, hi)
        return z

    return _attack


def backward_loop(model, eps, steps, alpha):
    "The loop of most tutorials: `loss.backward()`, which computes weight gradients as well."

    def _attack(x, y):
        z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            z = z.detach().requires_grad_()
            F.cross_entropy(model(z), y).backward()
            z = torch.min(torch.max(z.detach() + alpha * z.grad.sign(), x - eps), x + eps).clamp(
                0, 1
            )
        model.zero_grad()
        return z

    return _attack


def torchattacks_pgd(model, eps, steps, alpha):
    import torchattacks

    return torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=True)


def foolbox_pgd(model, eps, steps, alpha):
    import foolbox

    f = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps)
    return lambda x, y: attack.run(f, x, foolbox.criteria.Misclassification(y), epsilon=eps)


def art_pgd(model, eps, steps, alpha):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    shape = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    est = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (shape, 0, 0),
        10,
        clip_values=(0, 1),
        device_type="gpu" if next(model.parameters()).is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        est,
        eps=eps,
        eps_step=alpha,
        max_iter=steps,
        num_random_init=1,
        batch_size=4096,
        verbose=False,
    )
    return lambda x, y: torch.as_tensor(
        attack.generate(x.cpu().numpy(), F.one_hot(y, 10).cpu().numpy())
    ).to(x.device)


def candidates(model, eps, steps, bf16):
    alpha = 2.5 * eps / steps
    ball = LInfBall(eps)

    def ours(**kw):
        return lambda x, y: PGD(ball, steps, bounds=(0, 1), **kw)(model, x, y)

    out = {
        "floor": floor(model, eps, steps, alpha),
        "advinterp, same steps": ours(step_size=alpha),
        "advinterp, default steps": ours(),
        "advinterp, best iterate": ours(best=True),
        "loss.backward() loop": backward_loop(model, eps, steps, alpha),
    }
    if bf16:
        out.update(
            {
                "floor, bf16 + channels last": floor(model, eps, steps, alpha, True),
                "advinterp, fast=True": ours(step_size=alpha, fast=True),
            }
        )
    for name, make in (
        ("torchattacks", torchattacks_pgd),
        ("foolbox", foolbox_pgd),
        ("ART", art_pgd),
    ):
        try:
            out[name] = make(model, eps, steps, alpha)
        except ImportError:
            print(f"{name} is not installed")
    return out


# ---------------------------------------------------------------- timing


class Clock:
    "Seconds of a call: CPU time of this process, or wall time of a synchronised GPU."

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def __call__(self, f):
        if self.cuda:
            torch.cuda.synchronize()
        t = time.perf_counter() if self.cuda else time.process_time()
        out = f()
        if self.cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() if self.cuda else time.process_time()) - t, out


def rounds(fs, n, clock):
    "Times of each candidate in each round, and its last result."
    times, last = {k: [] for k in fs}, {}
    for k in fs:
        fs[k]()  # warm up
    for _ in range(n):
        for k in random.sample(list(fs), len(fs)):
            t, last[k] = clock(fs[k])
            times[k].append(t)
    return times, last


def ratio(times, k, base):
    return statistics.median(a / b for a, b in zip(times[k], times[base]))


def natural_step(model, x, y):
    opt = torch.optim.Adam(model.parameters(), 0.0)  # the step is computed, the weights stay

    def _step():
        loss = task_loss(model(x), y).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()

    return _step


def attack_table(name, model, x, y, eps, steps, n, clock, bf16):
    model.eval()
    cs = candidates(model, eps, steps, bf16)
    fs = {
        "natural step": natural_step(model, x, y),
        **{k: (lambda c=c: c(x, y)) for k, c in cs.items()},
    }
    times, last = rounds(fs, n, clock)
    print(
        f"\n{name}: batch {len(x)}, PGD-{steps}, eps {eps:.3g}, {n} rounds; natural step {1e3 * statistics.median(times['natural step']):.0f} ms, "
        f"clean loss {task_loss(model(x), y).mean():.4f}, accuracy {(model(x).argmax(1) == y).float().mean():.3f}"
    )
    print(f"{'':30}{'/ natural':>10}{'/ floor':>9}{'mean loss':>11}{'/ floor':>9}{'accuracy':>10}")
    losses = {k: task_loss(model(last[k]), y).mean().item() for k in cs}
    for k in cs:
        acc = (model(last[k]).argmax(1) == y).float().mean()
        print(
            f"{k:30}{ratio(times, k, 'natural step'):10.2f}{ratio(times, k, 'floor'):9.3f}{losses[k]:11.4f}{losses[k] / losses['floor']:9.3f}{acc:10.3f}",
            flush=True,
        )


# ---------------------------------------------------------------- training steps


def step_table(model, x, y, n, clock):
    "One training step of each protocol, relative to the natural step of the same round."
    model.train()
    opt = torch.optim.Adam(model.parameters(), 0.0)

    def update(loss):
        opt.zero_grad()
        loss.mean().backward()
        opt.step()

    def adversarial(adv):
        return lambda: update(task_loss(model(adv(model, x, y)), y))

    def penalised(p):
        return lambda: update(task_loss(model(x), y) + 0.1 * p(model, x, y))

    delta = torch.zeros_like(x)

    def replay():
        z = (x + delta).requires_grad_()
        opt.zero_grad()
        task_loss(model(z), y).mean().backward()
        opt.step()
        delta.add_(z.grad.sign(), alpha=0.1).clamp_(-0.3, 0.3)

    fs = {
        "natural": lambda: update(task_loss(model(x), y)),
        "one-step adversary": adversarial(OneStep(LInfBall(0.3), bounds=(0, 1))),
        "one replay of free training": replay,
        "PGD-10": adversarial(PGD(LInfBall(0.3), 10, bounds=(0, 1))),
        "GradNorm L1": penalised(GradNorm(L1(0.3))),
        "GradNorm L2, squared": penalised(GradNorm(L2(0.3), squared=True)),
        "JacobianNorm, 1 projection": penalised(JacobianNorm(1)),
        "JacobianNorm, 3 projections": penalised(JacobianNorm(3)),
        "JacobianNorm, exact": penalised(JacobianNorm()),
        "TargetMap": penalised(TargetMap(torch.zeros_like(x))),
        "WeightNorm l1": penalised(WeightNorm(1)),
    }
    times, _ = rounds(fs, n, clock)
    print(
        f"\nTraining steps: batch {len(x)}, {n} rounds; natural step {1e3 * statistics.median(times['natural']):.0f} ms\n{'':30}{'/ natural':>10}"
    )
    for k in fs:
        print(f"{k:30}{ratio(times, k, 'natural'):10.2f}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--cases",
        nargs="*",
        default=["cnn50", "cnn256", "penalties", "resnet", "cnn50x40"],
        choices=["cnn50", "cnn256", "cnn50x40", "resnet", "penalties"],
    )
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--weights", help="state_dict of the CNN; else it is trained for a moment")
    p.add_argument(
        "--bf16",
        action="store_true",
        help="time the bfloat16 loop also where the hardware has no instructions for it",
    )
    a = p.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    set_seed(0)
    device = torch.device(a.device)
    clock = Clock(device)
    bf16 = has_bf16(device) or a.bf16
    print(
        f"torch {torch.__version__}, {device}, CPU capability {torch.backends.cpu.get_cpu_capability()}, bfloat16 instructions: {has_bf16(device)}"
    )
    x, y, xs, ys = mnist(256)
    cnn = madry_cnn()
    if a.weights:
        cnn.load_state_dict(torch.load(a.weights, weights_only=True))
    else:
        natural(cnn, xs, ys)
    cnn, x, y = cnn.to(device), x.to(device), y.to(device)
    if "cnn50" in a.cases:
        attack_table("MNIST CNN", cnn, x[:50], y[:50], 0.1, 10, a.rounds, clock, bf16)
    if "cnn256" in a.cases:
        attack_table("MNIST CNN", cnn, x, y, 0.1, 10, a.rounds, clock, bf16)
    if "penalties" in a.cases:
        step_table(cnn, x[:50], y[:50], a.rounds, clock)
    if "resnet" in a.cases:
        attack_table(
            "resnet18, 32 x 32, random images",
            resnet18_32().to(device),
            torch.rand(16, 3, 32, 32, device=device),
            torch.arange(16, device=device) % 10,
            8 / 255,
            3,
            a.rounds,
            clock,
            bf16,
        )
    if "cnn50x40" in a.cases:
        attack_table("MNIST CNN", cnn, x[:50], y[:50], 0.1, 40, a.rounds, clock, bf16)


if __name__ == "__main__":
    main()
