"""Gradients of automatic mixed precision, unscaled where the step is taken."""

from torch.optim import Optimizer


def unscale(optimizer: Optimizer) -> None:
    """Divides gradients by the scale that `GradScaler` left with the optimizer, if it left one.

    It does so with optimizers whose `_step_supports_amp_scaling` is true, and calls their `step`
    even where it found gradients that are not finite: others wait for this one to take part.
    """
    if (scale := getattr(optimizer, "grad_scale", None)) is None:
        return
    inverse = scale.double().reciprocal().float()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(inverse.to(parameter.grad.device))
