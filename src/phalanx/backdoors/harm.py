"""Harm to honest clients: whom a defence leaves out or shortens, those with rare data above all."""

from typing import Any

import torch
from torch import Tensor

from phalanx.backdoors.drill import Defence, Federation, edge_set, pretrained, update_of
from phalanx.computations import Samples
from phalanx.randomness import generator

_KEPT = 0.5  # of a fair share, below which a client counts as shortened


def harm_run(
    federation: Federation, defence: Defence, seed: int = 0, draws: int = 200
) -> dict[str, Any]:
    """Whom a defence wrongs where everybody is honest, before the first round.

    Every client computes its update once. Then rounds are drawn in which one client holds rare
    samples and the others do not, and the rule is asked whom it leaves out (weight 0) and whom it
    shortens (to less than half of a fair share).

    Args:
        federation: its `honest_share` of the edge cases is held by `rare_share` of the clients.
        defence: of the server; noise has no part in it.
        seed: of the model, of who holds what and of the draws.
        draws: rounds that are drawn.

    Returns:
        `rare_left_out`, `usual_left_out`, `rare_shortened`, `usual_shortened`: shares of the
        clients with and without rare samples; None where the rule weighs coordinates.
        `rare_norm`, `usual_norm`: mean norms of their updates.
    """
    edge, model = edge_set(federation), pretrained(federation, seed)
    held, number = federation.clients(edge, seed), federation.clients_per_round
    updates, clients = [], len(held)
    for own in held:
        samples = Samples(*own.dataset[own.indices])
        updates.append(update_of(federation, model, samples, seed))
    rows = torch.stack(updates)
    rare = torch.zeros(clients, dtype=torch.bool)
    rare[federation.rare_clients(clients, seed)] = True
    few, usual = rare.nonzero().flatten(), (~rare).nonzero().flatten()
    source, weights = generator(seed, "harm"), list[Tensor]()
    for _ in range(draws):
        one = few[torch.randint(len(few), (1,), generator=source)]
        others = usual[torch.randperm(len(usual), generator=source)[: number - 1]]
        verdict = defence.rule.explain(rows[torch.cat([one, others])])
        if verdict.weights is None:
            break
        weights.append(verdict.weights * number)
    found: dict[str, Any] = {
        "rare_norm": rows[rare].norm(dim=1).mean().item(),
        "usual_norm": rows[~rare].norm(dim=1).mean().item(),
    }
    names = ("rare_left_out", "usual_left_out", "rare_shortened", "usual_shortened")
    if not weights:
        return found | dict.fromkeys(names)
    table = torch.stack(weights)
    parts = [table[:, :1], table[:, 1:]]
    shares = [(part <= 1e-9).double().mean().item() for part in parts]
    shares += [(part < _KEPT).double().mean().item() for part in parts]
    return found | dict(zip(names, shares, strict=True))
