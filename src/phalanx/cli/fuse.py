"""`phalanx fuse`: one network of several checkpoints."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from phalanx.cli.console import console
from phalanx.cli.train import MakeModel
from phalanx.data import DataSource, Digits
from phalanx.evaluation import evaluate
from phalanx.federated import Matching, neuron_layout
from phalanx.federated import fuse as fuse_networks
from phalanx.federated.neurons import resized
from phalanx.losses import cross_entropy
from phalanx.models import MLP


def fuse(
    checkpoints: list[Path],
    out: Path = Path("fused.pt"),
    model: MakeModel = MLP,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    matching: Matching = Matching(),  # noqa: B008 - frozen
    seed: int = 0,
) -> None:
    """Fuses checkpoints of networks of one architecture: neurons are matched, then averaged.

    Widths of hidden layers may differ. Checkpoints are the weights of runs (model.safetensors), or
    state dictionaries that torch.save wrote, of which nothing else is unpickled.

    Example: phalanx fuse a.pt b.pt --model MLP --matching.max_width 1 --out c.pt

    Args:
        checkpoints: Files of weights: .safetensors, or of torch.save.
        out: The file to write: of safetensors if it is called so, else of torch.save.
        model: A class that is called with the shape of an input and the number of classes.
        data: What gives shape and classes, and a test set for all networks.
        matching: How neurons are matched; with --matching.max_width 1 nothing grows.
        seed: Of the order in which networks are matched again.
    """
    states = {path: _read(path) for path in checkpoints}
    splits = data.load()
    first = model(splits.input_shape, splits.num_classes)
    for path, state in states.items():
        if wrong := sorted(set(first.state_dict()) ^ set(state)):
            raise ValueError(f"checkpoints must hold what model has; {path} differs in {wrong[:5]}")
    networks = [resized(first, state) for state in states.values()]
    fused = fuse_networks(networks, matching=matching, seed=seed).model
    weights = {name: one.contiguous() for name, one in fused.state_dict().items()}
    if out.suffix == ".safetensors":
        save_file(weights, out)
    else:
        torch.save(weights, out)
    for told, network in zip((*states, out), (*networks, fused), strict=True):
        widths = list(neuron_layout(network).widths(network.state_dict()).values())
        found = evaluate(network.eval(), cross_entropy, splits.test, splits.test)
        console.print(
            f"{told}: hidden layers {widths}, test accuracy {found.accuracy or 0:.1%}",
            soft_wrap=True,
            markup=False,
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"checkpoints must be files of tensors, which {path} is not") from error
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise ValueError(f"checkpoints must be state dictionaries, {path} holds something else")
    return state
