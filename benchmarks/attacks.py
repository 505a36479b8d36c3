"""Speed and strength of attacks and penalties against a hand-written floor and other libraries.

    python benchmarks/attacks.py [--cases cnn50 cnn256 cnn50x40 resnet penalties]
                                 [--rounds 5] [--device cpu] [--weights FILE]

Each round times every candidate once, in shuffled order; a figure is the median over rounds of the
ratio to the floor (or to the natural step) of the same round. On the CPU, time is the process's CPU
time on one thread, which other programs on the machine disturb least. Beside each time stands the
mean loss that the attack reached. Real MNIST images are used where they are found (ADVINTERP_DATA
or the cache) and the CNN is trained on them for a moment; else random images and labels, and
strength means little.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advinterp.adversary import PGD, OneStep, has_bf16
from advinterp.core import set_seed, task_loss
from advinterp.duals import L1, L2, LInfBall
from advinterp.models import madry_cnn
from advinterp.penalty import GradNorm, JacobianNorm, TargetMap, WeightNorm


def resnet18_32(n_out: int = 10) -> nn.Module:
    "torchvision's resnet18 with the stem for 32 x 32 images."
    from torchvision.models import resnet18

    model = resnet18(num_classes=n_out)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def mnist(n: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    "`n` MNIST test images and labels and a natural CNN's training images, or random ones."
    try:
        from advinterp.data import load

        data = load("mnist")
    except Exception as error:  # whatever is missing, the times can still be taken
        print(f"random images in place of MNIST ({type(error).__name__})")
        return torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,)), None, None
    x_test = torch.tensor(data.x_test[:n]).reshape(-1, 1, 28, 28)
    x = torch.tensor(data.x[:10000]).reshape(-1, 1, 28, 28)
    return x_test, torch.tensor(data.y_test[:n]), x, torch.tensor(data.y[:10000])


def train_for_a_moment(model: nn.Module, x: Tensor, y: Tensor, steps=150, batch_size=64) -> None:
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        i = torch.randint(0, len(x), (batch_size,))
        loss = task_loss(model(x[i]), y[i]).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()


# --- candidates: callables (x, y) -> x_adv


def floor(model, eps, steps, alpha, bf16=False):
    "The bare loop: gradient of the input only, in-place arithmetic, bounds computed once."
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
            z = z.detach() + alpha * z.grad.sign()
            z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
        model.zero_grad()
        return z

    return _attack


def torchattacks_pgd(model, eps, steps, alpha):
    import torchattacks

    return torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=True)


def foolbox_pgd(model, eps, steps, alpha):
    import foolbox

    device = next(model.parameters()).device
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps)

    def _attack(x, y):
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)

    return _attack


def art_pgd(model, eps, steps, alpha):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    n_channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (n_channels, 0, 0),
        10,
        clip_values=(0, 1),
        device_type="gpu" if next(model.parameters()).is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=eps,
        eps_step=alpha,
        max_iter=steps,
        num_random_init=1,
        batch_size=4096,
        verbose=False,
    )

    def _attack(x, y):
        x_adv = attack.generate(x.cpu().numpy(), F.one_hot(y, 10).cpu().numpy())
        return torch.as_tensor(x_adv).to(x.device)

    return _attack


def candidates(model, eps, steps, bf16) -> dict[str, Callable]:
    alpha = 2.5 * eps / steps

    def ours(**settings):
        return partial(PGD(LInfBall(eps), steps, bounds=(0, 1), **settings), model)

    out = {
        "floor": floor(model, eps, steps, alpha),
        "advinterp, same steps": ours(step_size=alpha),
        "advinterp, default steps": ours(),
        "advinterp, best iterate": ours(best=True),
        "loss.backward() loop": backward_loop(model, eps, steps, alpha),
    }
    if bf16:
        out["floor, bf16 + channels last"] = floor(model, eps, steps, alpha, True)
        out["advinterp, fast=True"] = ours(step_size=alpha, fast=True)
    libraries = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd}
    for name, make in libraries.items():
        try:
            out[name] = make(model, eps, steps, alpha)
        except ImportError:
            print(f"{name} is not installed")
    return out


# --- timing


class Clock:
    "Seconds of a call: CPU time of this process, or wall time of a synchronised GPU."

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, run: Callable) -> tuple:
        start = self.now()
        out = run()
        return self.now() - start, out


def rounds(runs: dict[str, Callable], n_rounds: int, clock: Clock) -> tuple[dict, dict]:
    "Times of each candidate in each round, and its last result."
    times, last = {name: [] for name in runs}, {}
    for run in runs.values():
        run()  # warm up
    for _ in range(n_rounds):
        for name in random.sample(list(runs), len(runs)):
            seconds, last[name] = clock(runs[name])
            times[name].append(seconds)
    return times, last


def ratio(times: dict, name: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[base]))


def natural_step(model, x, y) -> Callable:
    opt = torch.optim.Adam(model.parameters(), 0.0)  # the step is computed, the weights stay

    def _step():
        loss = task_loss(model(x), y).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()

    return _step


def loss_and_accuracy(model, x, y) -> tuple[float, float]:
    logits = model(x)
    return task_loss(logits, y).mean().item(), (logits.argmax(1) == y).float().mean().item()


def attack_table(title, model, x, y, eps, steps, n_rounds, clock, bf16) -> None:
    model.eval()
    attacks = candidates(model, eps, steps, bf16)
    runs = {"natural step": natural_step(model, x, y)}
    runs |= {name: partial(attack, x, y) for name, attack in attacks.items()}
    times, last = rounds(runs, n_rounds, clock)
    natural = 1e3 * statistics.median(times["natural step"])
    loss, accuracy = loss_and_accuracy(model, x, y)
    print(
        f"\n{title}: batch {len(x)}, PGD-{steps}, eps {eps:.3g}, {n_rounds} rounds; natural step "
        f"{natural:.0f} ms, clean loss {loss:.4f}, accuracy {accuracy:.3f}"
    )
    print(f"{'':30}{'/ natural':>10}{'/ floor':>9}{'mean loss':>11}{'/ floor':>9}{'accuracy':>10}")
    floor_loss, _ = loss_and_accuracy(model, last["floor"], y)
    for name in attacks:
        loss, accuracy = loss_and_accuracy(model, last[name], y)
        cost = f"{ratio(times, name, 'natural step'):10.2f}{ratio(times, name, 'floor'):9.3f}"
        strength = f"{loss:11.4f}{loss / floor_loss:9.3f}{accuracy:10.3f}"
        print(f"{name:30}{cost}{strength}", flush=True)


# --- training steps


def step_table(model, x, y, n_rounds, clock) -> None:
    "One training step of each protocol, relative to the natural step of the same round."
    model.train()
    opt = torch.optim.Adam(model.parameters(), 0.0)

    def update(loss):
        opt.zero_grad()
        loss.mean().backward()
        opt.step()

    def natural():
        update(task_loss(model(x), y))

    def adversarial(adv):
        return lambda: update(task_loss(model(adv(model, x, y)), y))

    def penalised(penalty):
        return lambda: update(task_loss(model(x), y) + 0.1 * penalty(model, x, y))

    delta = torch.zeros_like(x)

    def replay():
        z = (x + delta).requires_grad_()
        opt.zero_grad()
        task_loss(model(z), y).mean().backward()
        opt.step()
        delta.add_(z.grad.sign(), alpha=0.1).clamp_(-0.3, 0.3)

    runs = {
        "natural": natural,
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
    times, _ = rounds(runs, n_rounds, clock)
    milliseconds = 1e3 * statistics.median(times["natural"])
    print(
        f"\nTraining steps: batch {len(x)}, {n_rounds} rounds; natural step {milliseconds:.0f} ms"
    )
    print(f"{'':30}{'/ natural':>10}")
    for name in runs:
        print(f"{name:30}{ratio(times, name, 'natural'):10.2f}")


CASES = ["cnn50", "cnn256", "penalties", "resnet", "cnn50x40"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", help="state_dict of the CNN; else it is trained for a moment")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="time the bfloat16 loop also where the hardware has no instructions for it",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    set_seed(0)
    device = torch.device(args.device)
    bf16 = has_bf16(device) or args.bf16
    print(
        f"torch {torch.__version__}, {device}, "
        f"CPU capability {torch.backends.cpu.get_cpu_capability()}, "
        f"bfloat16 instructions: {has_bf16(device)}"
    )
    x, y, x_train, y_train = mnist(256)
    cnn = madry_cnn()
    if args.weights:
        cnn.load_state_dict(torch.load(args.weights, weights_only=True))
    elif x_train is not None:
        train_for_a_moment(cnn, x_train, y_train)
    cnn, x, y = cnn.to(device), x.to(device), y.to(device)
    common = dict(n_rounds=args.rounds, clock=Clock(device))
    if "cnn50" in args.cases:
        attack_table("MNIST CNN", cnn, x[:50], y[:50], 0.1, 10, bf16=bf16, **common)
    if "cnn256" in args.cases:
        attack_table("MNIST CNN", cnn, x, y, 0.1, 10, bf16=bf16, **common)
    if "penalties" in args.cases:
        step_table(cnn, x[:50], y[:50], **common)
    if "resnet" in args.cases:
        title = "resnet18, 32 x 32, random images"
        images = torch.rand(16, 3, 32, 32, device=device)
        labels = torch.arange(16, device=device) % 10
        resnet = resnet18_32().to(device)
        attack_table(title, resnet, images, labels, 8 / 255, 3, bf16=bf16, **common)
    if "cnn50x40" in args.cases:
        attack_table("MNIST CNN", cnn, x[:50], y[:50], 0.1, 40, bf16=bf16, **common)


if __name__ == "__main__":
    main()
