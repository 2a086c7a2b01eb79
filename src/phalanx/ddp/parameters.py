"""Names of the parameters that DDP keeps gradients of."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.communication.agreement import require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.parameters import sparse_gradients, unfit_parameters


def trained(model: DistributedDataParallel, **facts: Any) -> dict[nn.Parameter, str]:
    """The parameters with gradients, and their names in the wrapped module.

    Args:
        model: the wrapped model.
        facts: what else has to be the same on all ranks, by name.

    Raises:
        ValueError: if they lie on several devices, or their gradients are not dense and real; it
            names all that do not fit.
        DisagreementError: on all ranks, if ranks differ in the facts or in their parameters.
    """
    problems = unfit_parameters(dict(model.module.named_parameters()))
    if sparse := sparse_gradients(model.module):
        problems.append(
            f"gradients must be dense: those of {sparse} are sparse; make the embeddings with "
            "sparse=False"
        )
    names = {
        parameter: name
        for name, parameter in model.module.named_parameters()
        if parameter.requires_grad
    }
    if len(devices := {parameter.device for parameter in names}) > 1:
        problems.append(f"model must lie on one device, got {sorted(map(str, devices))}")
    if problems:
        raise ValueError("; ".join(problems))
    layout = [(name, tuple(one.shape), one.dtype) for one, name in names.items()]
    device = next(iter(devices), torch.device("cpu"))
    require_agreement(Peers(model.process_group), {**facts, "parameters": layout}, device)
    return names
