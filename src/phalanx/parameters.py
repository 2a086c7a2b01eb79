"""A model's trained parameters as one flat vector, and back: the only place where that is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the order of the model."""
    return [value for value in model.parameters() if value.requires_grad]


def unfit_parameters(named: Mapping[str, nn.Parameter]) -> list[str]:
    """Rules that trained parameters break, which must be dense real numbers of a known shape.

    >>> unfit_parameters({"w": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
    ["parameters must be real: ['w'] are torch.complex64; train their real and imaginary parts"]
    """
    problems, trained = [], {name: one for name, one in named.items() if one.requires_grad}
    lazy = [name for name, one in trained.items() if isinstance(one, UninitializedParameter)]
    if lazy:
        problems.append(
            f"parameters must have a shape: {lazy} are those of lazy layers, which get it from a "
            "first batch"
        )
    sparse = [name for name, one in trained.items() if one.layout != torch.strided]
    if sparse:
        problems.append(f"parameters must be dense: {sparse} are not")
    empty = [name for name, one in trained.items() if one.is_meta]
    if empty:
        problems.append(f"parameters must hold numbers: {empty} lie on the meta device")
    for dtype in sorted({one.dtype for one in trained.values() if one.is_complex()}, key=str):
        found = [name for name, one in trained.items() if one.dtype == dtype]
        problems.append(
            f"parameters must be real: {found} are {dtype}; train their real and imaginary parts"
        )
    return problems


def sparse_gradients(module: nn.Module) -> list[str]:
    """Names of the parameters whose gradients are sparse: of embeddings with `sparse=True`."""
    return [
        f"{name}.weight" if name else "weight"
        for name, one in module.named_modules()
        if isinstance(one, nn.Embedding | nn.EmbeddingBag)
        and one.sparse
        and one.weight.requires_grad
    ]


def make_dense(module: nn.Module) -> None:
    """Has embeddings with `sparse=True` give dense gradients from now on."""
    for one in module.modules():
        if isinstance(one, nn.Embedding | nn.EmbeddingBag):
            one.sparse = False


def module_modes(module: nn.Module) -> dict[nn.Module, bool]:
    """Whether each part of a module is in training mode; see `set_modes`."""
    return {one: one.training for one in module.modules()}


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Puts each part into its own mode: `train()` would wake what was put into evaluation mode."""
    for one, training in modes.items():
        one.training = training


@dataclass(frozen=True)
class ParameterLayout:
    """Where each trained parameter of a model lies in the flat vector of all of them.

    >>> import torch
    >>> layout = ParameterLayout.of(torch.nn.Linear(3, 2))
    >>> layout.dim, layout.shapes
    (8, ((2, 3), (2,)))
    >>> parts = layout.unflatten(torch.arange(8.0))
    >>> parts["bias"]
    tensor([6., 7.])
    >>> layout.flatten(parts).equal(torch.arange(8.0))
    True
    """

    names: tuple[str, ...]
    """Of the parameters, in the order of the model."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the parameters."""
    dtype: torch.dtype
    """Of all of them."""

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterLayout":
        """The layout of a model's trained parameters."""
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        dtype = next(iter(named.values())).dtype if named else torch.float32
        return cls(tuple(named), tuple(tuple(value.shape) for value in named.values()), dtype)

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> "ParameterLayout":
        """The layout of named tensors, such as gradients; its dtype holds all of theirs."""
        shapes = tuple(tuple(value.shape) for value in tensors.values())
        dtypes = [value.dtype for value in tensors.values()]
        dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.float32
        return cls(tuple(tensors), shapes, dtype)

    @property
    def sizes(self) -> list[int]:
        """Numbers in each parameter."""
        return [torch.Size(shape).numel() for shape in self.shapes]

    @property
    def dim(self) -> int:
        """Numbers in all parameters."""
        return sum(self.sizes)

    def flatten(self, parts: Mapping[str, Tensor]) -> Float[Tensor, " dim"]:
        """The parameters one after the other, in the dtype that holds all of them."""
        return torch.cat([parts[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, vector: Float[Tensor, " dim"]) -> dict[str, Tensor]:
        """The parameters by name: views of the vector."""
        parts = zip(self.names, vector.split(self.sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def read(self, model: nn.Module) -> Float[Tensor, " dim"]:
        """The model's trained parameters as a new vector."""
        return torch.cat([value.detach().reshape(-1) for value in trained_parameters(model)])

    @torch.no_grad()
    def write(self, model: nn.Module, vector: Float[Tensor, " dim"]) -> None:
        """Copies a vector into the model's trained parameters."""
        parts = self.unflatten(vector).values()
        for value, part in zip(trained_parameters(model), parts, strict=True):
            value.copy_(part)
