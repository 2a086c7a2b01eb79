"""Neurons of a network: where they lie in its tensors; permuted, padded, cut and resized."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

State = dict[str, Tensor]
"""A network's parameters and buffers by name."""


class Axis(NamedTuple):
    """Axis of a tensor along which the neurons of a layer lie, `before * neurons * after` long.

    Attributes:
        layer: whose neurons they are.
        before: how often all neurons are repeated: the four gates of an LSTM.
        after: entries of each neuron that lie together: the pixels of a channel, once flattened.
    """

    layer: str
    before: int = 1
    after: int = 1

    def entries(self, neurons: Int[Tensor, " chosen"], width: int) -> Int[Tensor, " entries"]:
        """Where some of the layer's `width` neurons lie along the axis."""
        starts = torch.arange(self.before)[:, None] * width + neurons
        return (starts[..., None] * self.after + torch.arange(self.after)).flatten()


class NeuronAxes(NamedTuple):
    """Layers that the axes of a tensor belong to.

    Attributes:
        axes: by axis; None where there are no neurons that could change places.
        layer: whose neurons the tensor makes; None for the last layer's.
        trained: whether it is a parameter, not a running statistic.
    """

    axes: tuple[Axis | None, ...]
    layer: str | None
    trained: bool = True

    @property
    def layers(self) -> set[str]:
        """All layers that it touches."""
        return {axis.layer for axis in self.axes if axis is not None}


@dataclass(frozen=True)
class NeuronLayout:
    """Layout of a network's neurons: its hidden layers, and where their neurons lie.

    Neurons of a hidden layer may change places, if all tensors that touch the layer follow; layers
    that are added up are one layer here. See `neuron_layout`.
    """

    layers: tuple[str, ...]
    """Hidden layers, by the name of the first module that writes to each, from input to output."""
    tensors: Mapping[str, NeuronAxes]
    """By name of the parameter or buffer."""
    rigid: frozenset[str] = frozenset()
    """Layers whose neurons may change places, but of which there can be no more and no fewer: a
    normalisation goes over all of them, so that a padded neuron would change the others."""

    def widths(self, state: Mapping[str, Tensor]) -> dict[str, int]:
        """How many neurons each layer has, as far as the tensors that are there show."""
        found: dict[str, int] = {}
        for name, one in state.items():
            for size, axis in zip(one.shape, self.tensors[name].axes, strict=True):
                if axis is not None:
                    found[axis.layer] = size // (axis.before * axis.after)
        return found

    def gather(
        self, state: Mapping[str, Tensor], neurons: Mapping[str, Int[Tensor, " _"]]
    ) -> State:
        """The network of the given neurons, in their order; other layers are left as they are."""
        widths, found = self.widths(state), dict(state)
        for name in state:
            for dim, axis in enumerate(self.tensors[name].axes):
                if axis is not None and axis.layer in neurons:
                    places = axis.entries(neurons[axis.layer], widths[axis.layer])
                    found[name] = found[name].index_select(dim, places.to(found[name].device))
        return found

    def scatter(
        self,
        state: Mapping[str, Tensor],
        neurons: Mapping[str, Int[Tensor, " _"]],
        widths: Mapping[str, int],
    ) -> State:
        """The network with each neuron at the given place among `widths`; zero elsewhere."""
        found = dict(state)
        for name in state:
            for dim, axis in enumerate(self.tensors[name].axes):
                if axis is None or axis.layer not in neurons:
                    continue
                small, width = found[name], widths[axis.layer]
                shape = list(small.shape)
                shape[dim] = axis.before * width * axis.after
                places = axis.entries(neurons[axis.layer], width).to(small.device)
                found[name] = small.new_zeros(shape).index_copy(dim, places, small)
        return found

    def rows_of(self, layer: str, matched: Collection[str]) -> list[str]:
        """The parameters by which a layer's neurons can be compared, given the matched layers.

        Those that lead from a layer that is not matched yet, or from the layer to itself, cannot.
        """
        return [
            name
            for name, told in self.tensors.items()
            if told.layer == layer
            and told.trained
            and sum(axis is not None and axis.layer == layer for axis in told.axes) == 1
            and told.layers <= {layer, *matched}
        ]

    def completed_by(self, layer: str, matched: Collection[str]) -> list[str]:
        """The tensors that a layer completes: all that its match needs, and that follows from it.

        Their layers are matched then, and they belong to one of those.
        """
        after = {layer, *matched}
        return [
            name
            for name, told in self.tensors.items()
            if told.layer is not None and layer in told.layers and told.layers <= after
        ]

    def last(self) -> list[str]:
        """The tensors that make no hidden layer's neurons: the last layer, and counts."""
        return [name for name, told in self.tensors.items() if told.layer is None]

    def atoms(
        self, state: Mapping[str, Tensor], layer: str, names: Collection[str]
    ) -> Float[Tensor, "neurons features"]:
        """A row for each neuron: all of its entries in the named parameters."""
        return torch.cat([self._rows(state[name], layer, name) for name in names], dim=1)

    def split_atoms(
        self,
        atoms: Float[Tensor, "neurons features"],
        layer: str,
        like: Mapping[str, Tensor],
    ) -> State:
        """The parameters of which rows were made, in order; `like` has their other sizes."""
        found, start = {}, 0
        for name, one in like.items():
            axis, dim = self._own(layer, name)
            rest = list(one.movedim(dim, 0).shape[1:])
            size = axis.before * axis.after * torch.Size(rest).numel()
            rows = atoms[:, start : start + size]
            start += size
            parts = rows.reshape(len(atoms), axis.before, axis.after, -1).transpose(0, 1)
            found[name] = parts.reshape(-1, *rest).movedim(0, dim).contiguous()
        return found

    def _rows(self, tensor: Tensor, layer: str, name: str) -> Tensor:
        axis, dim = self._own(layer, name)
        parts = tensor.movedim(dim, 0).reshape(axis.before, -1, axis.after, _rest(tensor, dim))
        return parts.transpose(0, 1).flatten(1)

    def _own(self, layer: str, name: str) -> tuple[Axis, int]:
        axes = enumerate(self.tensors[name].axes)
        return next((axis, dim) for dim, axis in axes if axis is not None and axis.layer == layer)


def _rest(tensor: Tensor, dim: int) -> int:
    return torch.Size([size for other, size in enumerate(tensor.shape) if other != dim]).numel()


def state_of(model: nn.Module) -> State:
    """A copy of a network's parameters and buffers."""
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def resized(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with other parameters and buffers, and the sizes that they have."""
    found = copy.deepcopy(model)
    for path, module in found.named_modules():
        prefix = f"{path}." if path else ""
        for name, old in list(module.named_parameters(recurse=False)):
            new = state[prefix + name].detach().clone()
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, _ in list(module.named_buffers(recurse=False)):
            if prefix + name in state:
                setattr(module, name, state[prefix + name].detach().clone())
        _tell_sizes(module)
    return found


def _tell_sizes(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        sizes = (module.weight, module.running_mean)
        module.num_features = next((len(o) for o in sizes if o is not None), module.num_features)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        if module.num_groups == module.num_channels:
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LSTM):
        weight: Any = module.weight_ih_l0
        module.hidden_size, module.input_size = weight.shape[0] // 4, weight.shape[1]
        module.flatten_parameters()
