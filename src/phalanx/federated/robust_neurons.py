"""Robust aggregation of matched neurons: a rule over the networks that hold them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from phalanx.aggregation import Aggregator, Mean
from phalanx.federated.matching import Matching
from phalanx.federated.neurons import NeuronLayout, State


def merged_by_holders(
    rule: Aggregator,
    names: Sequence[str],
    states: Mapping[int, State],
    held: Mapping[int, Mapping[str, Tensor]],
) -> State:
    """The rule over the networks that hold an entry, all entries that they share at once.

    Entries that fewer networks hold than the rule needs are zero.

    Args:
        rule: any that needs no state.
        names: of the tensors.
        states: by network, of equal shapes.
        held: by network and name, whether the network holds each entry.
    """
    values = torch.stack([_flat(states[one], names) for one in states])
    holds = torch.stack([_flat(held[one], names) for one in states])
    kind = torch.zeros(len(values[0]), dtype=torch.int64, device=values.device)
    for number, row in enumerate(holds):
        kind = 2 * kind + row.long()
        if number % 24 == 23 or number == len(holds) - 1:  # so that it never overflows
            kind = kind.unique(return_inverse=True)[1]
    merged = torch.zeros_like(values[0])
    for one in range(int(kind.max()) + 1):
        entries = (kind == one).nonzero().flatten()
        members = holds[:, entries[0]]
        if enough(rule, int(members.sum())):
            merged[entries] = rule(values[members][:, entries])
    return _split(merged, {name: next(iter(states.values()))[name] for name in names})


def merged_last(layout: NeuronLayout, states: Mapping[int, State], rule: Aggregator) -> State:
    """The rule over all networks for what belongs to no hidden layer; of counts the median."""
    stacked = {
        name: torch.stack([state[name] for state in states.values()]) for name in layout.last()
    }
    counts = {name: one for name, one in stacked.items() if not one.is_floating_point()}
    found = {name: one.median(dim=0).values for name, one in counts.items()}
    names = [name for name in stacked if name not in counts]
    merged = rule(torch.cat([stacked[name].flatten(1) for name in names], dim=1))
    return found | _split(merged, {name: stacked[name][0] for name in names})


def _flat(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([state[name].flatten() for name in names])


def _split(flat: Tensor, like: State) -> State:
    parts = flat.split([one.numel() for one in like.values()])
    return {name: part.view_as(one) for (name, one), part in zip(like.items(), parts, strict=True)}


def enough(rule: Aggregator, number: int) -> bool:
    """Whether a rule works with so many networks."""
    try:
        rule.num_tolerated(number)
        rule(torch.zeros(number, 1))
    except ValueError:
        return False
    return True


def check_rule(rule: Aggregator, matching: Matching, number: int) -> None:
    """Raises a `ValueError` if neurons cannot be aggregated by a rule."""
    if not isinstance(rule, Aggregator):
        raise ValueError(f"rule must be an Aggregator, got {rule!r:.80}")
    if isinstance(rule, Mean):
        return
    if matching.estimator != "mean":
        raise ValueError(
            f"rule takes the place of the mean of neurons, and needs estimator='mean', got {rule} "
            f"with {matching.estimator!r}"
        )
    if not enough(rule, number):
        raise ValueError(f"rule must work with {number} networks, got {rule}")
