"""PowerSGD: low-rank compression by warm-started power iteration."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.communication.collectives import AllReduce, Averaged, Exchange, ExchangeContext, State
from phalanx.compression.alternation import RIGHT, Alternation, orthonormal
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Message, Part, fixed, num_values
from phalanx.floats import power_of_two, require_finite, within, working

Matrix = Float[Tensor, "rows columns"]


@dataclass(frozen=True)
class PowerSGD(Compressor):
    """Replaces a matrix by the product of two thin ones; workers add the factors on the way.

    A tensor is the matrix of its first axis and all others; one with fewer axes, or with too little
    to win, is sent as it is. Biased: train with `ErrorFeedback` around it. The result is that of
    one worker with the mean matrix.

    The alternating variant multiplies once an iteration, in turn from the right and from the left,
    by the basis of what the last multiplication gave. What comes out is a part of rank `rank`; the
    next iteration is about the rest, and the parts add up.
    Wire: `rank * (rows + columns)` values an iteration, in two all-reduces for all tensors
    together; alternating, `rank * rows` or `rank * columns` in one. A single message has both
    factors of each part.
    Cost: `6 * rows * columns * rank` operations an iteration, `4 * rows * columns * rank` if
    alternating.
    Source: Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization", NeurIPS 2019, algorithm 1, and the library of its authors, whose
    variant is the alternating one.

    >>> import torch
    >>> x = torch.outer(torch.arange(6.0), torch.arange(8.0))
    >>> compressor = PowerSGD(rank=1)
    >>> message = compressor.encode(x, torch.Generator().manual_seed(0))
    >>> message.num_bytes, torch.allclose(compressor.decode(message), x, atol=1e-4)
    (56, True)
    """

    rank: int = 2
    """Columns of the factors."""
    min_compression: float = 2.0
    """A matrix is sent as it is unless its factors have so many times fewer values."""
    warm_start: bool = True
    """Whether a round starts from the right factor of the last one, or from random numbers."""
    error: Literal["aggregate", "local"] = "aggregate"
    """What counts as sent by a worker, for error feedback around it: the aggregate, as published,
    or the worker's own matrix projected on the common left factor."""
    variant: Literal["two-sided", "alternating"] = "two-sided"
    """Whether an iteration multiplies from both sides, or from one, in turn."""
    iterations: int = 1
    """Iterations of a round: two-sided ones find the same number of vectors more exactly, and four
    come close to the best approximation; alternating ones add a part of rank `rank` each."""

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank, iterations=self.iterations)
        require_at_least(1, min_compression=self.min_compression)
        if self.error not in ("aggregate", "local"):
            raise ValueError(f"error must be aggregate or local, got {self.error}")
        if self.variant not in ("two-sided", "alternating"):
            raise ValueError(f"variant must be two-sided or alternating, got {self.variant}")

    @property
    def random(self) -> bool:
        """True: the first right factor is."""
        return True

    @property
    def needs_shared_randomness(self) -> bool:
        """True: all workers start from the same right factor."""
        return True

    @property
    def per_tensor_shape(self) -> bool:
        """True."""
        return True

    @property
    def parts(self) -> int:
        """Products of thin matrices that add up to what a round sends."""
        return self.iterations if self.variant == "alternating" else 1

    def factors(self, shape: Shape) -> tuple[int, int, int] | None:
        """Rows, columns and rank that a tensor of this shape has; None if it is sent as it is."""
        if len(shape) < 2 or not num_values(shape):
            return None
        rows, columns = shape[0], num_values(shape[1:])
        rank = min(rows, columns, self.rank)
        small = self.parts * rank * (rows + columns) * self.min_compression
        return (rows, columns, rank) if small < rows * columns else None

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Left factor, right factor; or the values."""
        sizes = self.factors(shape)
        if sizes is None:
            return (fixed(dtype, num_values(shape)),)
        rows, columns, rank = sizes[0], sizes[1], self.parts * sizes[2]
        return fixed(working(dtype), rows * rank), fixed(working(dtype), columns * rank)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The factors from a random start."""
        if self.variant == "alternating":
            return self._alternate_alone(x, (), generator)[0]
        return self._pack(x, (), generator)

    def _pack(
        self, x: Tensor, state: State, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        if self.factors(tuple(x.shape)) is None:
            return (x.reshape(-1).clone(),)
        matrix = _as_matrix(x)
        warm = _last(state)
        left, right = matrix, self._drawn(x, generator) if warm is None else warm
        for _ in range(self.iterations):
            left = orthonormal(_times(matrix, right / power_of_two(right)))
            right = _project(left, matrix).T
        return left.reshape(-1), right.reshape(-1)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The product of the factors."""
        sizes = self.factors(shape)
        if sizes is None:
            return parts[0]
        left, right = (part.view(-1, self.parts * sizes[2]) for part in parts)
        return (left @ right.T).nan_to_num()  # a forged pair of factors may overflow

    def init(self, like: Float[Tensor, "..."]) -> State:
        """An empty right factor, if rounds start from the last; it is drawn in the first."""
        sizes = self.factors(tuple(like.shape))
        if sizes is None or not self.warm_start:
            return ()
        empty = like.new_zeros(sizes[1], sizes[2], dtype=working(like.dtype))
        return (empty,) if self.variant == "two-sided" else (empty, torch.tensor(RIGHT))

    def inherit(
        self,
        like: Float[Tensor, "..."],
        state: State,
        previous: Compressor,
        generator: torch.Generator | None = None,
    ) -> State:
        """The first columns of the right factor; those that it lacks are random and orthogonal."""
        fresh = self.init(like)
        if not (fresh and state and isinstance(previous, PowerSGD)) or not bool(state[0].any()):
            return fresh
        if previous.variant != self.variant:
            return fresh
        known, lacking = state[0], fresh[0].shape[1] - state[0].shape[1]
        if lacking <= 0:
            return (known[:, : fresh[0].shape[1]].clone(), *state[1:])
        drawn = _normal((len(known), lacking), generator).to(known)
        more = orthonormal(torch.cat([known, drawn], dim=1))[:, -lacking:]
        return (torch.cat([known, more], dim=1), *state[1:])

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Starts from the right factor of the last message."""
        if not state:
            return self.encode(x, generator), state
        require_finite([x])
        shape, x = tuple(x.shape), x.detach()
        if self.variant == "alternating":
            parts, state = self._alternate_alone(x, state, generator)
        else:
            parts = self._pack(x, state, generator)
            state = (parts[1].view_as(state[0]),)
        return Message(shape, x.dtype, self.layout(shape, x.dtype), parts), state

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """The mean left factors, made orthonormal, give the right ones, of which means are taken.

        What has no factors travels with the left ones.
        """
        places = [place for place, x in enumerate(tensors) if self.factors(tuple(x.shape))]
        matrices = [_as_matrix(tensors[place]) for place in places]
        starts = [self._start(tensors[at], states[at], context, at) for at in places]
        dense = [place for place in range(len(tensors)) if place not in places]
        result = Averaged(list(tensors), list(tensors), list(states))
        if self.variant == "alternating":
            yield from self._alternate(result, places, starts, dense, context)
            return result
        bases, own, rights = list[Matrix](), list[Matrix](), list[Matrix]()
        for turn in range(self.iterations):
            lefts = [_times(*pair) for pair in zip(matrices, starts, strict=True)]
            others = dense if turn == 0 else []
            found = yield from _mean([*lefts, *(tensors[at] for at in others)], context.num_workers)
            for place, mean in zip(others, found[len(places) :], strict=True):
                result.mean[place] = within(mean, tensors[place].dtype)
            bases = [orthonormal(left) for left in found[: len(places)]]
            own = [_project(basis, matrix) for basis, matrix in zip(bases, matrices, strict=True)]
            rights = yield from _mean(own, context.num_workers)
            starts = [right.T / power_of_two(right) for right in rights]
        for place, basis, right, mine in zip(places, bases, rights, own, strict=True):
            like = tensors[place]
            out = None if context.out is None else context.out[place]
            result.mean[place] = _product(basis, right, like, out)
            result.sent[place] = result.mean[place]
            if self.error == "local":
                result.sent[place] = _product(basis, mine, like)
            if self.warm_start:
                result.states[place] = (right.T,)
        return result

    def _alternate(
        self,
        result: Averaged,
        places: list[int],
        starts: list[Matrix],
        dense: list[int],
        context: ExchangeContext,
    ) -> Generator[AllReduce, Tensor | list[Tensor], None]:
        """The iterations of the alternating variant; means, what was sent and states go in."""
        tensors = list(result.mean)
        runs = [
            Alternation.of(_as_matrix(tensors[at]), start, result.states[at])
            for at, start in zip(places, starts, strict=True)
        ]
        for turn in range(self.iterations):
            others = dense if turn == 0 else []
            own = [run.multiplied() for run in runs]
            found = yield from _mean([*own, *(tensors[at] for at in others)], context.num_workers)
            for place, mean in zip(others, found[len(places) :], strict=True):
                result.mean[place] = within(mean, tensors[place].dtype)
            for run, mine, mean in zip(runs, own, found, strict=False):
                run.advance(mean, mine if self.error == "local" else mean)
        for place, run in zip(places, runs, strict=True):
            like = tensors[place]
            result.mean[place] = within(run.total, like.dtype).view(like.shape)
            sent = result.mean[place]
            if self.error == "local":
                sent = within(run.sent, like.dtype).view(like.shape)
            result.sent[place] = sent
            if self.warm_start:
                result.states[place] = run.state

    def _alternate_alone(
        self, x: Tensor, state: State, generator: torch.Generator | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """The parts of a single message, and the next state."""
        if self.factors(tuple(x.shape)) is None:
            return (x.reshape(-1).clone(),), state
        warm = _last(state)
        start = self._drawn(x, generator) if warm is None else warm
        run = Alternation.of(_as_matrix(x), start, state)
        for _ in range(self.iterations):
            found = run.multiplied()
            run.advance(found, found)
        left, right = run.factors
        return (left.reshape(-1), right.reshape(-1)), run.state if state else ()

    def _start(self, x: Tensor, state: State, context: ExchangeContext, place: int) -> Matrix:
        """The last right factor, or a first one."""
        warm = _last(state)
        return self._drawn(x, context.generator(place, shared=True)) if warm is None else warm

    def _drawn(self, x: Tensor, generator: torch.Generator | None) -> Matrix:
        """Random numbers."""
        sizes = self.factors(tuple(x.shape))
        assert sizes is not None  # else there is nothing to draw
        return _normal(sizes[1:], generator).to(x.device, working(x.dtype))


def _normal(shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError("generator must be given: PowerSGD is random, got None")
    return torch.randn(shape, generator=generator, device=generator.device)


def _last(state: State) -> Matrix | None:
    """The last factor; None in the first round, and after a factor of zeros."""
    if not state or not bool(state[0].any()):
        return None
    return state[0] / power_of_two(state[0])  # its size does not matter, and its square overflows


def _times(matrix: Matrix, right: Float[Tensor, "columns rank"]) -> Float[Tensor, "rows rank"]:
    """The product; thin matrices whose long axis is the inner one go through memory once."""
    return matrix @ right.T.contiguous().T


def _project(left: Float[Tensor, "rows rank"], matrix: Matrix) -> Float[Tensor, "rank columns"]:
    """The right factor, transposed."""
    return left.T.contiguous() @ matrix


def _product(
    left: Float[Tensor, "rows rank"],
    right: Float[Tensor, "rank columns"],
    like: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """The product as a tensor like this one.

    It is written to `out` if that has the dtype of arithmetic and values without gaps: new memory
    of this size costs more than the arithmetic.
    """
    if out is None or out.dtype != left.dtype or not out.is_contiguous():
        return within(left @ right, like.dtype).view(like.shape)
    torch.mm(left, right, out=out.view(len(left), -1))
    return out


def _as_matrix(x: Tensor) -> Matrix:
    """First axis against all others, in the dtype of arithmetic."""
    return x.detach().reshape(x.shape[0], -1).to(working(x.dtype))


def _mean(
    tensors: list[Tensor], num_workers: int
) -> Generator[AllReduce, Tensor | list[Tensor], list[Tensor]]:
    """The workers' means of these tensors, in the dtype of arithmetic, by one all-reduce."""
    if not tensors:
        return []
    flat = torch.cat([x.detach().reshape(-1).to(working(x.dtype)) for x in tensors])
    total = yield AllReduce(flat / num_workers)
    assert isinstance(total, Tensor)
    pieces = zip(total.split([x.numel() for x in tensors]), tensors, strict=True)
    return [piece.view(x.shape).to(working(x.dtype)) for piece, x in pieces]
