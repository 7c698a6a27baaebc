"""What a fit costs beside the network's own training, in multiply-accumulates.

Both are counted operator by operator with one image, forward and backward, and multiplied by how often they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.behind import Before, Behind
from compoff.fitting.calibrating import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    import compoff

__all__ = ["TRAININGS", "fit_cost", "macs_of"]

# Published schedules: the weights for CIFAR-10 took 200 epochs of its 50,000 images (He et al., CVPR 2016: 164), those
# for ImageNet 90 epochs of 1,281,167 (He et al.; torchvision's recipe).
TRAININGS = {10: (200, 50_000), 1000: (90, 1_281_167)}
"""By the number of classes."""
_PASSES_OF_A_START = 3  # one forward pass and the gradients of two projections, of every sample looked at


def macs_of(run: Callable[[], Any]) -> int:
    """Multiply-accumulates of whatever a function runs, its backward passes too.

    Args:
        run: The function.

    Returns:
        The number.
    """
    with FlopCounterMode(display=False) as flops:
        run()
    return flops.get_total_flops() // 2


def fit_cost(
    model: compoff.Wrapped, split: str, images: Tensor, *, steps: int, batch: int, kept: int | None
) -> dict[str, Any]:
    """Multiply-accumulates of a fit, and of the training that made the network.

    Args:
        model: The wrapped network.
        split: The split point.
        images: A few images, where the network is.
        steps: Steps of the fit.
        batch: Samples of a step.
        kept: Number of samples whose features were computed once; None where every step ran the whole network.

    Returns:
        ``fit_macs``, ``training_macs`` and ``fit_share``, the one over the other; without the search for the first
        step, which is a hundredth of it.
    """
    net, count = model.base, len(images)
    before, behind = Before(net, split), Behind(net, split)
    with torch.no_grad():
        feature = before(images)
        prefix = macs_of(lambda: before(images)) / count
        rest = macs_of(lambda: behind(feature)) / count
    step = macs_of(lambda: model.distillation_loss(images, split=split).backward()) / count
    model.bottlenecks.zero_grad(set_to_none=True)
    # A step of the whole network runs what lies before the split point twice, for the teacher and for the student.
    fitted = steps * batch * (step - 2 * prefix) + kept * prefix if kept else steps * batch * step
    started = min(SAMPLES, kept or SAMPLES) * (_PASSES_OF_A_START * rest + (0 if kept else prefix))
    epochs, samples = TRAININGS[next(reversed(net.state_dict().values())).numel()]
    training = epochs * samples * macs_of(lambda: _trained(net, images)) / count
    return {"fit_macs": fitted + started, "training_macs": training, "fit_share": (fitted + started) / training}


def _trained(net: nn.Module, images: Tensor) -> None:
    """One forward and backward pass to every weight, on copies, for the network itself stays frozen."""
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in net.named_parameters()}
    torch.func.functional_call(net, weights, (images,)).sum().backward()
