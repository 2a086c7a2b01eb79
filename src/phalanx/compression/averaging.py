"""One worker's round of compressed averaging over named tensors."""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phalanx.communication.collectives import AllGather, Answer, ExchangeContext, Request, State
from phalanx.compression.base import Compressor
from phalanx.errors import NotFiniteError, WireError
from phalanx.floats import all_finite


class TensorStates(NamedTuple):
    """The states of named tensors between rounds. A round returns the next, and changes nothing.

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
    def from_state_dict(cls, saved: Mapping[str, Any]) -> "TensorStates":
        """The memory that `state_dict` saved."""
        states: dict[str, State] = {}
        # The order within a name is that of its numbers, whatever that of the mapping.
        for key in sorted(saved["tensors"], key=lambda key: int(key.rpartition(".")[2])):
            name = key.rpartition(".")[0]
            states[name] = (*states.get(name, ()), saved["tensors"][key])
        return cls(int(saved["step"]), states)


Worker = Generator[Request, Answer, tuple[dict[str, Tensor], TensorStates]]
"""A worker's round: asks for collectives, ends with the mean and the next memory."""

Collector = Generator[Request, Answer, tuple[list[dict[str, Tensor] | None], TensorStates]]
"""A worker's round: ends with what every worker sent, and the next memory."""


def average(
    compressor: Compressor,
    tensors: Mapping[str, Tensor],
    memory: TensorStates,
    *,
    seed: int,
    worker: int,
    num_workers: int,
    in_place: bool = False,
) -> Worker:
    """One worker's part of a round; a driver sends it the results of the collectives it asks for.

    Before anything else the workers tell each other, in one byte, whether their tensors are finite:
    either all of them go on or all raise the same error.

    Args:
        compressor: what all workers use.
        tensors: by name; the same names and shapes on all workers.
        memory: what this worker remembers. Names that are not among the tensors keep their state.
        seed: of the run.
        worker: id of this worker.
        num_workers: how many take part.
        in_place: whether the tensors may be overwritten, with their means among others, and those
            of the memory with the next ones. Otherwise nothing that is given is changed.

    Raises:
        NotFiniteError: naming the workers with NaN or infinity.
        WireError: if the bytes of another worker are not a message.
    """
    names = tuple(sorted(tensors))
    values = [tensors[name].detach() for name in names]
    sick = yield from _not_finite(values)
    if sick:
        raise NotFiniteError(f"tensors must be finite, not so on workers {sick}", workers=sick)
    out = tuple(values) if in_place else None
    part = ExchangeContext(seed, memory.step, worker, num_workers, names, out)
    found = yield from compressor.exchange(values, _states(compressor, values, memory, names), part)
    means = dict(zip(names, found.mean, strict=True))
    return means, _next(memory, names, found.states)


def gather(
    compressor: Compressor,
    tensors: Mapping[str, Tensor],
    memory: TensorStates,
    *,
    seed: int,
    worker: int,
    num_workers: int,
) -> Collector:
    """One worker's part of a round after which everybody knows what each worker sent.

    For robust rules, which look at workers one by one: nothing is averaged, and nobody's tensors
    stop the others. Where there is NaN or infinity in a worker's tensors, or its bytes are not
    messages, there is None in its place; its memory does not change in the first case.

    Messages are those that `compressor.update` encodes, also of compressors whose messages could be
    added on the way. Arguments are those of `average`.
    """
    names = tuple(sorted(tensors))
    values = [tensors[name].detach() for name in names]
    sick = yield from _not_finite(values)
    states = _states(compressor, values, memory, names)
    part = ExchangeContext(seed, memory.step, worker, num_workers, names)
    messages, following = [], []
    for place, (x, state) in enumerate(zip(values, states, strict=True)):
        shared = compressor.needs_shared_randomness
        source = part.generator(place, shared=shared) if compressor.random else None
        if worker in sick:  # something of the right size, which nobody reads
            messages.append(compressor.encode(torch.zeros_like(x), source))
        else:
            message, state = compressor.update(x, state, source)
            messages.append(message)
        following.append(state)
    rows = yield from compressor.collect(messages)
    found: list[dict[str, Tensor] | None] = []
    for sender, row in enumerate(rows):
        if sender in sick or isinstance(row, WireError):
            found.append(None)
        else:
            decoded = (compressor.decode(message) for message in row)
            found.append(dict(zip(names, decoded, strict=True)))
    return found, _next(memory, names, following)


def _not_finite(values: list[Tensor]) -> Generator[Request, Answer, list[int]]:
    """The workers with NaN or infinity, as each tells all others in one byte."""
    device = values[0].device if values else torch.device("cpu")
    healthy = torch.tensor([all_finite(values)], dtype=torch.uint8, device=device)
    flags = yield AllGather(healthy, equal=True)
    return [place for place, flag in enumerate(flags) if not bool(flag)]


def _states(
    compressor: Compressor, values: list[Tensor], memory: TensorStates, names: tuple[str, ...]
) -> list[State]:
    """What is remembered of the tensors; of new ones, what a first round begins with."""
    pairs = zip(names, values, strict=True)
    return [
        memory.states[name] if name in memory.states else compressor.init(x) for name, x in pairs
    ]


def _next(memory: TensorStates, names: tuple[str, ...], states: list[State]) -> TensorStates:
    """The memory after a round about these tensors."""
    kept = {name: state for name, state in zip(names, states, strict=True) if state}
    return TensorStates(memory.step + 1, {**memory.states, **kept})
