"""Tracing of a network's neurons by `torch.fx`: which axes of which tensors belong together."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import fx, nn

from phalanx.federated.neurons import Axis, NeuronAxes, NeuronLayout

_ELEMENTWISE = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d)
_SOFTMAX = (nn.Softmax, nn.LogSoftmax)
_ACTIVATIONS = {one.__name__.lower() for one in _ELEMENTWISE} | {"leaky_relu"}
_CALLS: dict[str, set[str]] = {
    "elementwise": _ACTIVATIONS | {"contiguous", "clone"},
    "pooling": {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"},
    "softmax": {"softmax", "log_softmax"},
    "sum": {"add", "iadd", "sub", "isub"},
    "flatten": {"flatten", "view", "reshape"},
}
Kind = Literal[
    "input",
    "features",
    "channels",
    "sequence",
    "flat",
    "lstm",
    "states",
    "state",
    "plain",
    "unknown",
]


def neuron_layout(model: nn.Module) -> NeuronLayout:
    """The hidden layers of a network, and where their neurons lie in its parameters and buffers.

    Understood are linear layers, two-dimensional convolutions, embeddings and LSTMs of one
    direction and layer; batch normalisation, whose entries go with the neuron; sums, whose terms
    become one layer; flattening, pooling, activations and dropout, as modules and functions.
    Normalisation over all neurons, by `LayerNorm` or `GroupNorm` of one group, lets them change
    places, but makes their layer rigid: it cannot grow, as a padded neuron would change the others.
    `GroupNorm` of one channel a group goes with the channel; of other groups it is refused, since
    neurons of one cannot go to another.

    Cost: one symbolic run of the network.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> layout = neuron_layout(net)
    >>> layout.layers, layout.tensors["3.weight"].axes
    (('1',), (None, Axis(layer='1', before=1, after=1)))

    Raises:
        ValueError: if the network cannot be traced, or does something else; all such places are
            named.
    """
    try:
        graph = _Tracer().trace(nn.Sequential(model))
    except Exception as error:  # whatever the user's forward makes of a proxy
        raise ValueError(
            f"model must be one that torch.fx can trace, got {type(model).__name__}: {error}"
        ) from error
    reader = _Reader(model)
    for node in graph.nodes:
        reader.read(node)
    return reader.layout()


class _Tracer(fx.Tracer):
    """Calls forwards without the checks of their annotations, which proxies would not pass."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.is_leaf_module(m, ""):
            forward = partial(inspect.unwrap(type(m).forward), m)
        return super().call_module(m, forward, args, kwargs)


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor between layers: whose neurons it holds, and along which axis."""

    kind: Kind
    layer: int | None = None


_PLAIN = _Value("plain")
_UNKNOWN = _Value("unknown")  # after what was refused; its users are not blamed for it
_PARTS: Mapping[Kind, tuple[Kind, Kind]] = {  # what items of an LSTM's output are
    "lstm": ("sequence", "states"),
    "states": ("state", "state"),
    "state": ("features", "features"),
}


class _Reader:
    """Follows the graph of a network, node by node."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._buffers = {
            name: one
            for name, one in model.state_dict(keep_vars=True).items()
            if name not in self._parameters
        }
        self._values: dict[fx.Node, _Value] = {}
        self._names: list[str] = []  # of layers, by number: the module that writes
        self._widths: list[int] = []
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._rigid: set[int] = set()
        self._tensors: dict[str, tuple[list[tuple[int, int, int] | None], int | None]] = {}
        self._called: set[str] = set()
        self._problems: list[str] = []

    def read(self, node: fx.Node) -> None:
        """Notes what a node does."""
        if node.op == "placeholder":
            self._values[node] = _Value("input")
        elif node.op == "output":
            for one in node.all_input_nodes:
                self._fix(self._values[one])
        elif node.op == "call_module":
            path = str(node.target).partition(".")[2]  # the model is item 0 of what is traced
            self._values[node] = self._module(node, path)
        elif node.op == "get_attr":
            self._values[node] = self._refuse(f"parameter {node.target} used by itself")
        elif any(self._values[one].kind == "unknown" for one in node.all_input_nodes):
            self._values[node] = _UNKNOWN
        else:
            named = node.target if isinstance(node.target, str) else node.target.__name__
            self._values[node] = self._call(node, named.strip("_"))

    def layout(self) -> NeuronLayout:
        """What was found; refused if anything is not understood."""
        held: dict[int, list[str]] = {}
        for name, one in self._parameters.items():
            held.setdefault(id(one), []).append(name)
        self._problems += [f"shared parameters {names}" for names in held.values() if names[1:]]
        left = [name for name in (*self._parameters, *self._buffers) if name not in self._tensors]
        if left and not self._problems:
            self._problems.append(f"parameters or buffers {left} of no layer that is understood")
        if self._problems:
            raise ValueError(
                "model must be made of layers whose neurons can be matched; not understood: "
                + "; ".join(dict.fromkeys(self._problems))
            )
        fixed = {self._root(one) for one in self._fixed}
        layers: dict[int, str] = {}
        for number, name in enumerate(self._names):
            if (root := self._root(number)) not in fixed:
                layers.setdefault(root, name)
        tensors = {
            name: NeuronAxes(
                tuple(
                    None
                    if axis is None or self._root(axis[0]) in fixed
                    else Axis(layers[self._root(axis[0])], *axis[1:])
                    for axis in axes
                ),
                None if own is None else layers.get(self._root(own)),
                name in self._parameters,
            )
            for name, (axes, own) in self._tensors.items()
        }
        rigid = {self._root(one) for one in self._rigid} - fixed
        return NeuronLayout(
            tuple(layers.values()), tensors, frozenset(layers[one] for one in rigid)
        )

    def _module(self, node: fx.Node, path: str) -> _Value:
        module, value = self._modules[path], self._first(node)
        kind = f"{path} ({type(module).__name__})"
        known = (*_ELEMENTWISE, *_POOLING, *_SOFTMAX, nn.Flatten, *_LAYERS)
        if value.kind == "unknown" and isinstance(module, known):
            return _UNKNOWN
        if isinstance(module, _ELEMENTWISE):
            return value
        if isinstance(module, _POOLING):
            return self._pooled(value, kind)
        if isinstance(module, _SOFTMAX):
            return self._softmax(node, value, kind)
        if isinstance(module, nn.Flatten):
            return self._flattened(value, kind, module.start_dim == 1 and module.end_dim == -1)
        if path in self._called:
            return self._refuse(f"{kind} called twice")
        self._called.add(path)
        for cls, read in _LAYERS.items():
            if isinstance(module, cls):
                if len(node.all_input_nodes) != 1:
                    return self._refuse(f"{kind} with {len(node.all_input_nodes)} inputs")
                return read(self, module, path, value)
        return self._refuse(kind)

    def _call(self, node: fx.Node, name: str) -> _Value:
        value = self._first(node)
        what = next((one for one, names in _CALLS.items() if name in names), None)
        if what == "elementwise":
            return value
        if what == "pooling":
            return self._pooled(value, name)
        if what == "softmax":
            return self._softmax(node, value, name)
        if what == "sum":
            return self._sum(node, name)
        if what == "flatten":
            return self._flattened(value, name, self._flattens(node, name))
        if name == "mean":
            return self._mean(node, value)
        if name == "getitem":
            return self._item(node, value)
        if name == "squeeze" and value.kind == "state" and node.args[1:] == (0,):
            return replace(value, kind="features")
        if name == "size" or (name == "getattr" and node.args[1:] == ("shape",)):
            return _PLAIN
        return self._refuse(name)

    def _linear(self, module: nn.Linear, path: str, value: _Value) -> _Value:
        if value.kind not in ("input", "features", "sequence", "flat"):
            return self._refuse(f"{path} (Linear) after {value.kind}")
        layer = self._new(path, module.out_features)
        self._write(
            path, "weight", [(layer, 1, 1), self._incoming(path, value, module.in_features)]
        )
        self._write(path, "bias", [(layer, 1, 1)])
        return _Value("sequence" if value.kind == "sequence" else "features", layer)

    def _convolution(self, module: nn.Conv2d, path: str, value: _Value) -> _Value:
        if module.groups != 1 or value.kind not in ("input", "channels"):
            told = f"{module.groups} groups" if module.groups != 1 else f"after {value.kind}"
            return self._refuse(f"{path} (Conv2d) {told}")
        layer = self._new(path, module.out_channels)
        inputs = self._incoming(path, value, module.in_channels)
        self._write(path, "weight", [(layer, 1, 1), inputs, None, None])
        self._write(path, "bias", [(layer, 1, 1)])
        return _Value("channels", layer)

    def _normalisation(self, module: Any, path: str, value: _Value) -> _Value:
        fits = ("channels",) if isinstance(module, nn.BatchNorm2d) else ("features", "flat")
        if value.kind not in (*fits, "input"):
            return self._refuse(f"{path} ({type(module).__name__}) after {value.kind}")
        axis = self._incoming(path, value, module.num_features)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self._write(path, name, [axis])
        self._write(path, "num_batches_tracked", [])
        return value

    def _layer_norm(self, module: nn.LayerNorm, path: str, value: _Value) -> _Value:
        shape = module.normalized_shape
        whole = len(shape) == (3 if value.kind == "channels" else 1)
        if not whole or value.kind not in ("input", "features", "channels", "sequence", "flat"):
            return self._refuse(f"{path} (LayerNorm) of {list(shape)} after {value.kind}")
        return self._over_all(path, value, shape[0], [None] * (len(shape) - 1))

    def _group_norm(self, module: nn.GroupNorm, path: str, value: _Value) -> _Value:
        groups, channels = module.num_groups, module.num_channels
        if value.kind not in ("channels", "input") or groups not in (1, channels):
            told = f"of {groups} groups of {channels} channels after {value.kind}"
            return self._refuse(f"{path} (GroupNorm) {told}")
        if groups == channels and module.affine:  # without entries its growth could not be seen
            axis = self._incoming(path, value, channels)
            for name in ("weight", "bias"):
                self._write(path, name, [axis])
            return value
        return self._over_all(path, value, channels, [])

    def _over_all(self, path: str, value: _Value, size: int, rest: list[None]) -> _Value:
        """A normalisation over all neurons."""
        axis = self._incoming(path, value, size)
        for name in ("weight", "bias"):
            self._write(path, name, [axis, *rest])
        if value.layer is not None:
            self._rigid.add(value.layer)
        return value

    def _embedding(self, module: nn.Embedding, path: str, value: _Value) -> _Value:
        layer = self._new(path, module.embedding_dim)
        self._write(path, "weight", [None, (layer, 1, 1)])
        return _Value("sequence", layer)

    def _lstm(self, module: nn.LSTM, path: str, value: _Value) -> _Value:
        if module.num_layers != 1 or module.bidirectional or module.proj_size:
            return self._refuse(f"{path} (LSTM) of more than one layer, direction or projection")
        if value.kind not in ("input", "sequence"):
            return self._refuse(f"{path} (LSTM) after {value.kind}")
        layer = self._new(path, module.hidden_size)
        gates, inputs = (layer, 4, 1), self._incoming(path, value, module.input_size)
        self._write(path, "weight_ih_l0", [gates, inputs])
        self._write(path, "weight_hh_l0", [gates, (layer, 1, 1)])
        for name in ("bias_ih_l0", "bias_hh_l0"):
            self._write(path, name, [gates])
        return _Value("lstm", layer)

    def _write(self, path: str, name: str, axes: list[tuple[int, int, int] | None]) -> None:
        full = f"{path}.{name}" if path else name
        if full in self._parameters or full in self._buffers:
            written = [axis for axis in axes if axis is not None]
            embedded = len(axes) == 2 and axes[0] is None
            own = written[-1 if embedded else 0][0] if written and (axes[0] or embedded) else None
            self._tensors[full] = (axes, own)

    def _incoming(self, path: str, value: _Value, size: int) -> tuple[int, int, int] | None:
        """The axis of what comes in."""
        if value.layer is None:
            return None
        width = self._widths[value.layer]
        if size % width or (size != width and value.kind != "flat"):
            self._refuse(f"{path} takes {size} inputs from {width} neurons")
            return None
        return value.layer, 1, size // width

    def _pooled(self, value: _Value, name: str) -> _Value:
        fits = value.kind in ("channels", "input")
        return value if fits else self._refuse(f"{name} after {value.kind}")

    def _softmax(self, node: fx.Node, value: _Value, name: str) -> _Value:
        last = all(user.op == "output" for user in node.users)
        return value if last else self._refuse(f"{name} before the last layer")

    def _flattens(self, node: fx.Node, name: str) -> bool:
        """Whether it keeps the first axis, and makes one of all others."""
        rest: Any = node.args[1:]
        if name == "flatten":
            start: Any = node.kwargs.get("start_dim", rest[0] if rest else 0)
            return bool(start == 1) and len(rest) < 2 and "end_dim" not in node.kwargs
        if len(rest) == 1 and isinstance(rest[0], tuple | list):
            rest = tuple(rest[0])
        return len(rest) == 2 and rest[1] == -1 and isinstance(rest[0], fx.Node)

    def _flattened(self, value: _Value, name: str, whole: bool) -> _Value:
        if not whole or value.kind not in ("input", "channels", "features", "flat"):
            return self._refuse(f"{name} of {value.kind} other than of all axes but the first")
        return replace(value, kind="flat") if value.kind == "channels" else value

    def _mean(self, node: fx.Node, value: _Value) -> _Value:
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        chosen = {dims} if isinstance(dims, int) else set(dims or ())
        pixels = value.kind == "channels" and chosen in ({2, 3}, {-1, -2})
        places = value.kind == "sequence" and chosen in ({1}, {-2})
        if not (pixels or places) or node.kwargs.get("keepdim"):
            return self._refuse(f"mean of {value.kind} over {dims}")
        return replace(value, kind="features")

    def _item(self, node: fx.Node, value: _Value) -> _Value:
        key: Any = node.args[1]
        if value.kind == "plain":
            return _PLAIN
        if value.kind in _PARTS and isinstance(key, int):
            return replace(value, kind=_PARTS[value.kind][min(abs(key), 1)])
        taken = key if isinstance(key, tuple) else (key,)
        whole = all(one == slice(None) for one in taken[2:])
        if value.kind == "sequence" and len(taken) in (2, 3) and whole and taken[0] == slice(None):
            return replace(value, kind="features" if isinstance(taken[1], int) else "sequence")
        return self._refuse(f"part {key} of {value.kind}")

    def _sum(self, node: fx.Node, name: str) -> _Value:
        terms = [self._values[one] for one in node.all_input_nodes]
        if len(terms) == 1 and all(isinstance(one, fx.Node | int | float) for one in node.args):
            return terms[0]
        if len(terms) == 2 and terms[0].kind == terms[1].kind != "plain":
            first, second = terms[0].layer, terms[1].layer
            if first is not None and second is not None:
                if self._widths[first] == self._widths[second]:
                    low, high = sorted((self._root(first), self._root(second)))
                    self._parents[high] = low
                    return terms[0]
            elif first is None and second is None:
                return terms[0]
            else:  # the input is added to neurons, which then have to stay where they are
                self._fix(terms[0] if second is None else terms[1])
                return self._refuse(f"{name} of the input and a layer")
        return self._refuse(f"{name} of {' and '.join(one.kind for one in terms)}")

    def _new(self, path: str, width: int) -> int:
        self._names.append(path)
        self._widths.append(width)
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def _root(self, layer: int) -> int:
        while self._parents[layer] != layer:
            layer = self._parents[layer]
        return layer

    def _fix(self, value: _Value) -> None:
        if value.layer is not None:
            self._fixed.add(value.layer)

    def _first(self, node: fx.Node) -> _Value:
        inputs = node.all_input_nodes
        return self._values[inputs[0]] if inputs else _PLAIN

    def _refuse(self, what: str) -> _Value:
        self._problems.append(what)
        return _UNKNOWN


_LAYERS: Mapping[type[nn.Module], Callable[..., _Value]] = {
    nn.Linear: _Reader._linear,
    nn.Conv2d: _Reader._convolution,
    nn.BatchNorm1d: _Reader._normalisation,
    nn.BatchNorm2d: _Reader._normalisation,
    nn.LayerNorm: _Reader._layer_norm,
    nn.GroupNorm: _Reader._group_norm,
    nn.Embedding: _Reader._embedding,
    nn.LSTM: _Reader._lstm,
}
