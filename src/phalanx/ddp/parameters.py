"""Names of the parameters that DDP keeps gradients of."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def trained(model: DistributedDataParallel) -> dict[nn.Parameter, str]:
    """The parameters with gradients, and their names in the wrapped module.

    Raises:
        ValueError: if they lie on several devices.
    """
    names = {
        parameter: name
        for name, parameter in model.module.named_parameters()
        if parameter.requires_grad
    }
    if len(devices := {parameter.device for parameter in names}) > 1:
        raise ValueError(f"model must lie on one device, got {sorted(map(str, devices))}")
    return names
