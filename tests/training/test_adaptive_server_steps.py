"""Server steps of FedOpt and server momentum, against references written by hand."""

import torch
from torch import nn

from phalanx.training import ServerAdagrad, ServerAdam, ServerMomentum, ServerYogi

UPDATES = torch.tensor([[1.0, -0.5, 0.0], [0.25, 0.5, 2.0], [-1.0, 0.0, 1e-4]]).double()


def conducted(step):
    """The weights after each update, starting from zero."""
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    state, found = step.init(model), []
    for update in UPDATES:
        state = step.load(model, step.dump(step.apply(model, update, state)))
        found.append(model.weight.detach().flatten().clone())
    return torch.stack(found)


def test_adaptive_steps(subtests):
    second = {
        ServerAdam: lambda v, d: 0.99 * v + 0.01 * d * d,
        ServerYogi: lambda v, d: v - 0.01 * d * d * ((v > d * d) * 1.0 - (v < d * d) * 1.0),
        ServerAdagrad: lambda v, d: v + d * d,
    }
    for kind, rule in second.items():
        with subtests.test(kind.__name__):
            beta1 = kind().beta1
            x, m, v = torch.zeros(3).double(), torch.zeros(3).double(), torch.full((3,), 1e-6)
            v, expected = v.double(), []
            for d in UPDATES:
                m = beta1 * m + (1 - beta1) * d
                v = rule(v, d)
                x = x - 0.1 * m / (v**0.5 + 1e-3)
                expected.append(x)
            assert torch.allclose(conducted(kind()), torch.stack(expected), atol=1e-9)


def test_momentum_is_that_of_torch(subtests):
    for nesterov in (False, True):
        with subtests.test(nesterov=nesterov):
            parameter = nn.Parameter(torch.zeros(3).double())
            optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.8, nesterov=nesterov)
            expected = []
            for update in UPDATES:
                parameter.grad = update.clone()
                optimizer.step()
                expected.append(parameter.detach().clone())
            ours = conducted(ServerMomentum(0.8, 0.3, nesterov))
            assert torch.allclose(ours, torch.stack(expected), atol=1e-12)
