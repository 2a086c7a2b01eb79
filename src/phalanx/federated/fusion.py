"""Fusion of networks by matched averaging: neurons are matched, layer by layer, then averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Int, Real
from torch import Tensor, nn

from phalanx.aggregation import Aggregator, Mean
from phalanx.federated.matching import Matching, match_layer
from phalanx.federated.neurons import NeuronLayout, State, resized, state_of
from phalanx.federated.robust_neurons import check_rule, merged_by_holders, merged_last
from phalanx.federated.tracing import neuron_layout
from phalanx.randomness import derive_seed

Assignment = dict[str, Tensor]
"""By layer `(neurons,)` int64: which neuron of the fused network each of a network's own is."""
Retrain = Callable[[int, nn.Module], object]
"""Trains the parameters that require a gradient of a network, given its number, in place."""


class Fused(NamedTuple):
    """A fused network, and where the neurons of the networks went.

    Attributes:
        model: the network.
        assignments: per network; see `Assignment`.
    """

    model: nn.Module
    assignments: tuple[Assignment, ...]


class MatchedLayer(NamedTuple):
    """A layer once it is matched: what the server of a federation sends to its clients.

    Attributes:
        layer: its name.
        width: its number of neurons.
        assignments: by network `(neurons,)` int64, which of them its own are.
        tensors: all that is averaged now and trained no more, by name.
    """

    layer: str
    width: int
    assignments: dict[int, Int[Tensor, " _"]]
    tensors: State


def fuse(
    models: Sequence[nn.Module],
    class_counts: Real[Tensor, "networks classes"] | None = None,
    *,
    retrain: Retrain | None = None,
    matching: Matching = Matching(),  # noqa: B008 - frozen
    rule: Aggregator = Mean(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Fused:
    """One network of several that were trained apart, by federated matched averaging (FedMA).

    From input to output, the neurons of a hidden layer are matched by their incoming weights and
    biases, and averaged over the networks that hold them; the next layer's inputs follow, and every
    network may be retrained with what is averaged held fixed. The last layer is averaged with the
    networks' shares of each class. Widths may differ from network to network.

    Without retraining, errors add up with depth. `Matching(max_width=1)` merges networks of one
    shape into one of that shape. Layers with a normalisation over all of their neurons never grow.

    Cost: that of `match_layer` for each layer, and of retraining, `networks x layers` times.
    Source: Wang, Yurochkin, Sun, Papailiopoulos and Khazaeni, "Federated Learning with Matched
    Averaging", ICLR 2020, section 3. Normalisation, residual connections and averaging the
    recurrent weights over the networks that hold both ends are ours.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> turned = neuron_layout(net).gather(net.state_dict(), {"0": torch.tensor([3, 2, 1, 0])})
    >>> x = torch.randn(5, 3)
    >>> fused = fuse([net, resized(net, turned)], matching=Matching(variance=0.01, mass=0.1))
    >>> torch.allclose(fused.model(x), net(x), atol=1e-6), fused.assignments[1]["0"].tolist()
    (True, [3, 2, 1, 0])

    Args:
        models: of one architecture; see `neuron_layout` for which. They are left as they are.
        class_counts: samples of each class that each network was trained on; equal by default.
        retrain: called for each network after each layer.
        matching: how neurons are matched.
        rule: how matched neurons and the last layer are aggregated. Under a robust one class counts
            are not used, and neurons that fewer networks hold than it needs are zero: whoever lies
            about neurons has its own ones left out.
        seed: of the order in which networks are matched again.

    Raises:
        ValueError: if there is no network, a layer is not understood, two networks do not agree in
            all but widths, or the rule does not fit.
    """
    layout = common_layout(models)
    check_rule(rule, matching, len(models))
    if class_counts is not None:
        check_counts(class_counts, len(models))
    server = LayerMatching(layout, matching, seed, rule)
    states = {number: state_of(model) for number, model in enumerate(models)}
    for layer in layout.layers:
        matched = server.match(layer, states)
        for number, state in states.items():
            states[number] = advance(layout, state, matched, number)
            if retrain is not None:
                model = ready(models[number], states[number], server.finished)
                retrain(number, model)
                states[number] = state_of(model)
    state = server.finished | average_last(layout, states, class_counts, rule)
    return Fused(
        resized(models[0], state), tuple(server.assignments.get(number, {}) for number in states)
    )


def common_layout(models: Sequence[nn.Module]) -> NeuronLayout:
    """The layout of networks that agree in all but widths.

    Raises:
        ValueError: see `fuse`.
    """
    if not models:
        raise ValueError("models must be at least 1, got none")
    layouts = [neuron_layout(model) for model in models]
    shapes = [_fixed_sizes(layouts[0], model) for model in models]
    for number, (layout, sizes) in enumerate(zip(layouts, shapes, strict=True)):
        if layout != layouts[0] or sizes != shapes[0]:
            names = {name for name in sizes if sizes[name] != shapes[0].get(name)}
            told = sorted(names) or "their layers"
            raise ValueError(
                "models must be of one architecture, apart from the widths of hidden layers; "
                f"model {number} differs from model 0 in {told}"
            )
    layout = layouts[0]
    widths = [layout.widths(model.state_dict()) for model in models]
    for layer in sorted(layout.rigid):
        if len(found := {one[layer] for one in widths}) > 1:
            raise ValueError(
                f"models must have layer {layer} of one width, since a normalisation goes over "
                f"all of its neurons, got widths {sorted(found)}"
            )
    return layout


def _fixed_sizes(layout: NeuronLayout, model: nn.Module) -> dict[str, list[int] | None]:
    """Of each tensor the sizes that no layer's width changes, its dtype and its name."""
    found: dict[str, list[int] | None] = {}
    for name, one in model.state_dict().items():
        told = layout.tensors.get(name)
        fits = told is not None and len(told.axes) == one.ndim
        found[name] = None
        if told is not None and fits:
            sizes = zip(one.shape, told.axes, strict=True)
            found[name] = [size for size, axis in sizes if axis is None]
    return found


class LayerMatching:
    """The server's side of matched averaging, one layer after the other.

    Args:
        layout: of all networks.
        matching: how neurons are matched.
        seed: of the order in which networks are matched again.
        rule: how neurons are aggregated.
    """

    def __init__(
        self,
        layout: NeuronLayout,
        matching: Matching,
        seed: int,
        rule: Aggregator = Mean(),  # noqa: B008 - frozen
    ) -> None:
        self._layout, self._matching, self._seed, self._rule = layout, matching, seed, rule
        self._matched: list[str] = []
        self.finished: State = {}
        self.assignments: dict[int, Assignment] = {}

    def match(self, layer: str, states: Mapping[int, State]) -> MatchedLayer:
        """Matches a layer of the networks, whose earlier layers are matched, and averages it.

        Args:
            layer: the next one.
            states: by network; at least one.
        """
        names = self._layout.rows_of(layer, self._matched)
        atoms = [self._layout.atoms(state, layer, names) for state in states.values()]
        rigid = layer in self._layout.rigid
        matching = replace(self._matching, max_width=1) if rigid else self._matching
        found = match_layer(atoms, matching, seed=derive_seed(self._seed, layer))
        width = len(found.counts)
        assignments = dict(zip(states, found.assignments, strict=True))
        for network, assignment in assignments.items():
            self.assignments.setdefault(network, {})[layer] = assignment
        self._matched.append(layer)
        padded = {
            network: self._layout.scatter(state, {layer: assignments[network]}, {layer: width})
            for network, state in states.items()
        }
        completed = self._layout.completed_by(layer, self._matched)
        if isinstance(self._rule, Mean):
            first = next(iter(padded.values()))
            rows = {name: first[name] for name in names}
            tensors = self._layout.split_atoms(found.atoms, layer, rows)
            others = [name for name in completed if name not in tensors]
            tensors |= {name: self._mean(name, padded) for name in others}
        else:
            tensors = self._robust(completed, padded)
        self.finished |= tensors
        return MatchedLayer(layer, width, assignments, tensors)

    def _mean(self, name: str, states: Mapping[int, State]) -> Tensor:
        """The mean over the networks that hold the neuron: at both ends, if it feeds its layer."""
        one = next(iter(states.values()))[name]
        total, count = torch.zeros_like(one, dtype=torch.float64), torch.zeros_like(one)
        for network, state in states.items():
            held = self._held(name, one, network)
            total += state[name] * held
            count += held
        return (total / count.clamp(min=1)).to(one)

    def _held(self, name: str, like: Tensor, network: int) -> Tensor:
        """One where a network holds the neuron, else zero."""
        told, held = self._layout.tensors[name], torch.ones_like(like)
        for dim, axis in enumerate(told.axes):
            if axis is not None and axis.layer == told.layer:
                mask = held.new_zeros(like.shape[dim])
                width = like.shape[dim] // (axis.before * axis.after)
                mask[axis.entries(self.assignments[network][axis.layer], width)] = 1
                held = held * mask.view([-1 if d == dim else 1 for d in range(like.ndim)])
        return held

    def _robust(self, names: Sequence[str], states: Mapping[int, State]) -> State:
        """The rule over the networks that hold the neuron."""
        like = {name: next(iter(states.values()))[name] for name in names}
        held = {
            network: {name: self._held(name, one, network).bool() for name, one in like.items()}
            for network in states
        }
        return merged_by_holders(self._rule, names, states, held)


def advance(layout: NeuronLayout, state: State, matched: MatchedLayer, network: int) -> State:
    """A network whose next layer is the matched one: its own neurons at their places, others too.

    What leads on from neurons that the network does not hold is zero.
    """
    places = {matched.layer: matched.assignments[network]}
    return layout.scatter(state, places, {matched.layer: matched.width}) | matched.tensors


def ready(model: nn.Module, state: State, frozen: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with the given state, whose frozen parameters require no gradient."""
    found = resized(model, state)
    for name, one in found.named_parameters():
        if name in frozen:
            one.requires_grad_(False)
    return found


def check_counts(class_counts: Real[Tensor, "networks classes"], num_networks: int) -> None:
    """Raises a `ValueError` if counts are not one row a network, negative, or all zero."""
    if len(class_counts) != num_networks:
        raise ValueError(f"class_counts must have {num_networks} rows, got {len(class_counts)}")
    counts = class_counts.double()
    if not (counts.isfinite().all() and (counts >= 0).all() and counts.any()):
        raise ValueError("class_counts must be finite, at least 0 and not all 0")


def average_last(
    layout: NeuronLayout,
    states: Mapping[int, State],
    class_counts: Real[Tensor, "networks classes"] | None,
    rule: Aggregator = Mean(),  # noqa: B008 - frozen
) -> State:
    """The mean of what belongs to no hidden layer: the last layer, by the networks' classes.

    A class that no network holds, and what has no classes, is weighed by the networks' samples.
    Counts, such as those of batches, take the largest. Under a robust rule neither classes nor
    samples count.
    """
    if not isinstance(rule, Mean):
        return merged_last(layout, states, rule)
    counts = torch.ones(len(states), 1) if class_counts is None else class_counts
    counts = counts.double().cpu()
    shares = counts.sum(dim=1) / counts.sum()
    held = counts.sum(dim=0)
    by_class = torch.where(held > 0, counts / held.clamp(min=1e-300), shares[:, None])
    found = {}
    for name in layout.last():
        axes = layout.tensors[name].axes
        stacked = torch.stack([state[name] for state in states.values()])
        if not stacked.is_floating_point():
            found[name] = stacked.amax(dim=0)
            continue
        by_rows = class_counts is not None and stacked.shape[1:2] == counts.shape[1:]
        weights = by_class if by_rows and axes[0] is None else shares
        weights = weights.view(*weights.shape, *[1] * (stacked.ndim - weights.ndim))
        weights = weights.to(stacked.device)
        found[name] = (stacked * weights).sum(dim=0).to(stacked)
    return found
