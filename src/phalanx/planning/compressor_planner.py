"""Planner of compressors on links: a cost model, fed with times measured on the model."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from phalanx.checks import require_at_least
from phalanx.communication import AllGather, AllReduce, AllToAll, Answer, Link, Request
from phalanx.compression import (
    QSGD,
    Atomo,
    Compressor,
    ErrorFeedback,
    HalfPrecision,
    PowerSGD,
    RandomK,
    ScaledSign,
    TensorStates,
    TernGrad,
    TopK,
    UniformQuantization,
    average,
)
from phalanx.losses import Loss, cross_entropy
from phalanx.parameters import ParameterLayout, trained_parameters
from phalanx.planning.plan import Plan

CANDIDATES: tuple[Compressor, ...] = (
    HalfPrecision(),
    UniformQuantization(bits=8),
    QSGD(),
    TernGrad(),
    ErrorFeedback(ScaledSign()),
    ErrorFeedback(TopK(ratio=0.01)),
    ErrorFeedback(RandomK(ratio=0.01, rescale=False)),
    ErrorFeedback(PowerSGD(rank=2)),
    Atomo(),
)
"""What is compared by default."""

_Worker = Generator[Request, Answer, tuple[dict[str, Tensor], TensorStates]]


class CompressorOutlook(NamedTuple):
    """What to expect of a compressor on a link.

    Attributes:
        compressor: how it is written; "none" for the dense all-reduce.
        collective: how messages are averaged: "all-reduce" adds them on the way, "all-gather" sends
            all of them to everybody, "all-to-all" a share to each, whose mean is then gathered.
        payload_bytes: of the messages, per worker and step.
        wire_bytes: sent, and received, per worker and step, without headers.
        num_hops: waits for another worker, per worker and step.
        overhead_s: seconds of encoding, decoding and averaging, per worker and step.
        own_s: seconds of a step without any link: computing the gradient, and the overhead.
        step_s: seconds of a step on the link.
        break_even: bits a second below which it beats the dense all-reduce: infinity if always, 0
            if never.
        max_workers: workers from which on it sends as many bytes as the dense all-reduce, or more;
            None if there are none: where messages are not sent to everybody.
    """

    compressor: str
    collective: str
    payload_bytes: int
    wire_bytes: float
    num_hops: int
    overhead_s: float
    own_s: float
    step_s: float
    break_even: float
    max_workers: int | None

    def at(self, link: Link) -> float:
        """Seconds of a step on a link."""
        return self.own_s + link.seconds(self.wire_bytes, self.num_hops)


@dataclass(frozen=True)
class CompressorPlanner:
    """Predicts the step time of every compressor on a link, from one measurement here.

    The model, which is simple on purpose:

    - `step = compute + overhead + latency + bytes / bandwidth`, one after the other. DDP sends the
      first gradients while it computes the last ones, so that its steps are a little shorter.
    - An all-reduce of `S` bytes takes `2 (n - 1)` messages in a row and `2 (n - 1) / n * S` bytes
      of a worker's link, an all-gather of `b` bytes per worker `n - 1` messages and `(n - 1) b`
      bytes: rings, as gloo and NCCL build them. A message takes two hops, as gloo sends it when
      its receiver has said that it is ready; NCCL does not wait for that, so halve the latency
      for it. Links are full-duplex, and only the workers' own ones are narrow.
    - Headers of Ethernet and TCP take 4.6 % on top.
    - Workers compute as fast as this process does: run it on one of them, with its threads.

    Every compressor plays a few rounds of one worker, with the collectives that it would ask for:
    what it sends, and how long it takes, is measured and not assumed. What it does to the accuracy
    is not in here.
    """

    link: Link = Link()  # noqa: RUF009 - frozen
    """What joins each worker to the others; `phalanx.communication.probe_link` measures it."""

    num_workers: int = 4
    """Workers (n)."""

    compressors: Sequence[Compressor] = CANDIDATES
    """What is compared with the dense all-reduce, and with each other."""

    num_rounds: int = 3
    """Rounds that are timed for each compressor, after one that is not; the median counts."""

    def __post_init__(self) -> None:
        require_at_least(2, num_workers=self.num_workers)
        require_at_least(1, num_rounds=self.num_rounds)

    def plan(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: Loss = cross_entropy,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Plan[CompressorOutlook]:
        """The compressors and the dense all-reduce, the quickest first.

        Args:
            model: what is trained; its gradients are computed, and thrown away.
            inputs: a worker's batch, on the device of the model.
            targets: its targets.
            loss: mean loss of a batch from the model's output and the targets.
            progress: told what is being measured.

        Raises:
            ValueError: if nothing is trained, or the gradients are not finite.

        >>> import torch
        >>> from phalanx.communication import Link
        >>> from phalanx.planning import CompressorPlanner
        >>> x, y = torch.randn(8, 512), torch.zeros(8, dtype=torch.int64)
        >>> planner = CompressorPlanner(Link(rate=1e6), num_workers=2, num_rounds=1)
        >>> best, *_, worst = planner.plan(torch.nn.Linear(512, 512), x, y)
        >>> worst.compressor, best.step_s < worst.step_s / 10
        ('none', True)
        """
        if not trained_parameters(model):
            raise ValueError("model must have parameters that require gradients, got none")
        progress("the gradient")
        compute_s = self._compute_s(model, inputs, targets, loss)
        gradients = {
            name: value.grad for name, value in model.named_parameters() if value.grad is not None
        }
        if not all(bool(one.isfinite().all()) for one in gradients.values()):
            raise ValueError("model must have finite gradients on the batch, got NaN or infinity")
        dense = self._outlook(None, gradients, compute_s)
        found = [dense]
        for compressor in self.compressors:
            progress(str(compressor))
            found.append(self._outlook(compressor, gradients, compute_s, dense))
        model.zero_grad()
        return Plan(sorted(found, key=lambda one: one.step_s))

    def _compute_s(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> float:
        """Seconds of a forward and backward pass; leaves the gradients with the parameters."""

        def step() -> None:
            model.zero_grad()
            loss(model(inputs), targets).backward()
            _await(inputs.device)

        return median([_seconds(step) for _ in range(self.num_rounds + 1)][1:])

    def _outlook(
        self,
        compressor: Compressor | None,
        gradients: Mapping[str, Tensor],
        compute_s: float,
        dense: CompressorOutlook | None = None,
    ) -> CompressorOutlook:
        """Plays the rounds of a compressor; None is the dense all-reduce."""
        memory, times = TensorStates(), []
        requests: list[Request] = []
        for _ in range(self.num_rounds + 1):
            requests, seconds, memory = self._play(compressor, gradients, memory)
            times.append(seconds)
        overhead_s = median(times[1:])
        # Of a compressor, the first request is but the byte that says whether all is finite.
        main = requests if compressor is None else requests[1:]
        payload = sum(one.tensor.nbytes for one in main)
        gathers = any(isinstance(one, AllGather) for one in main)
        cut = any(isinstance(one, AllToAll) for one in main)
        found = CompressorOutlook(
            compressor="none" if compressor is None else str(compressor),
            collective="all-to-all" if cut else "all-gather" if gathers else "all-reduce",
            payload_bytes=payload,
            wire_bytes=sum(one.wire_bytes(self.num_workers) for one in requests),
            num_hops=sum(one.num_hops(self.num_workers) for one in requests),
            overhead_s=overhead_s,
            own_s=compute_s + overhead_s,
            step_s=0.0,
            break_even=0.0,
            max_workers=None,
        )
        found = found._replace(step_s=found.at(self.link))
        if dense is None:
            return found
        most = math.ceil(2 * dense.payload_bytes / max(payload, 1)) if gathers and not cut else None
        return found._replace(break_even=_break_even(found, dense, self.link), max_workers=most)

    def _play(
        self, compressor: Compressor | None, gradients: Mapping[str, Tensor], memory: TensorStates
    ) -> tuple[list[Request], float, TensorStates]:
        """One round of one worker among others like it: what it asked for, and its own seconds."""
        worker = (
            _dense(gradients, memory)
            if compressor is None
            else average(
                compressor, gradients, memory, seed=0, worker=0, num_workers=self.num_workers
            )
        )
        device = next(iter(gradients.values())).device
        requests: list[Request] = []
        answer: Answer | None = None
        seconds = 0.0
        while True:
            began = time.perf_counter()
            try:
                request = worker.send(answer) if answer is not None else next(worker)
            except StopIteration as done:
                _await(device)
                return requests, seconds + time.perf_counter() - began, done.value[1]
            _await(device)
            seconds += time.perf_counter() - began
            requests.append(request)
            answer = self._answer(request)

    def _answer(self, request: Request) -> Answer:
        """What workers that all send the same would get back; sums as large as the addends."""
        if isinstance(request, AllReduce):
            return request.tensor.clone()
        if isinstance(request, AllToAll):
            return [request.tensor[: request.lengths[0]]] * self.num_workers
        return [request.tensor] * self.num_workers


def _dense(gradients: Mapping[str, Tensor], memory: TensorStates) -> _Worker:
    """A worker's round without compression: all gradients in one all-reduce."""
    layout = ParameterLayout.like(gradients)
    total = yield AllReduce(layout.flatten(gradients).div_(1))
    return layout.unflatten(cast(Tensor, total)), memory


def _break_even(one: CompressorOutlook, dense: CompressorOutlook, link: Link) -> float:
    """The bandwidth at which both take equally long, with the latency of the link."""
    saved_s = link.seconds(dense.wire_bytes - one.wire_bytes, 0)
    extra_s = one.own_s - dense.own_s + link.seconds(0, one.num_hops - dense.num_hops)
    if saved_s <= 0:
        return 0.0
    return link.rate * saved_s / extra_s if extra_s > 0 else math.inf


def _seconds(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _await(device: torch.device) -> None:
    """Waits for a GPU to be done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
