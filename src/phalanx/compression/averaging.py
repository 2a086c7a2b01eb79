"""A worker's round over named tensors: checked, averaged, remembered."""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phalanx.compression.base import Compressor, all_finite
from phalanx.compression.collectives import AllGather, AllReduce, Round, State
from phalanx.errors import NotFiniteError


class Memory(NamedTuple):
    """What one worker remembers between rounds. Never changed: a round returns the next.

    Attributes:
        step: number of the next round; it is where randomness comes from.
        states: each tensor's state, by the tensor's name.
    """

    step: int = 0
    states: Mapping[str, State] = {}

    def state_dict(self) -> dict[str, Any]:
        """The step, and the tensors under `name.place`: for a checkpoint."""
        tensors = {
            f"{name}.{place}": tensor
            for name, state in self.states.items()
            for place, tensor in enumerate(state)
        }
        return {"step": self.step, "tensors": tensors}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any]) -> "Memory":
        """The memory that `state_dict` saved."""
        states: dict[str, State] = {}
        # The order within a name is that of its numbers, whatever that of the mapping.
        for key in sorted(saved["tensors"], key=lambda key: int(key.rpartition(".")[2])):
            name = key.rpartition(".")[0]
            states[name] = (*states.get(name, ()), saved["tensors"][key])
        return cls(int(saved["step"]), states)


Worker = Generator[AllReduce | AllGather, Tensor | list[Tensor], tuple[dict[str, Tensor], Memory]]
"""A worker's round: asks for collectives, ends with the mean and the next memory."""


def average(
    compressor: Compressor,
    tensors: Mapping[str, Tensor],
    memory: Memory,
    *,
    seed: int,
    worker: int,
    num_workers: int,
) -> Worker:
    """One worker's part of a round; a driver sends it the results of the collectives it asks for.

    Before anything else the workers tell each other, in one byte, whether their tensors are finite:
    either all of them go on or all raise the same error.

    Args:
        compressor: what all workers use.
        tensors: by name; the same names and shapes on all workers. They are not changed.
        memory: what this worker remembers. Names that are not among the tensors keep their state.
        seed: of the run.
        worker: id of this worker.
        num_workers: how many take part.

    Raises:
        NotFiniteError: naming the workers with NaN or infinity.
        WireError: if the bytes of another worker are not a message.
    """
    names = tuple(sorted(tensors))
    values = [tensors[name].detach() for name in names]
    device = values[0].device if values else torch.device("cpu")
    healthy = torch.tensor([all_finite(values)], dtype=torch.uint8, device=device)
    flags = yield AllGather(healthy, equal=True)
    sick = [place for place, flag in enumerate(flags) if not bool(flag)]
    if sick:
        raise NotFiniteError(f"tensors must be finite, not so on workers {sick}", workers=sick)
    states = [
        memory.states.get(name, compressor.init(x)) for name, x in zip(names, values, strict=True)
    ]
    part = Round(seed, memory.step, worker, num_workers, names)
    found = yield from compressor.exchange(values, states, part)
    kept = {name: state for name, state in zip(names, found.states, strict=True) if state}
    means = dict(zip(names, found.mean, strict=True))
    return means, Memory(memory.step + 1, {**memory.states, **kept})
