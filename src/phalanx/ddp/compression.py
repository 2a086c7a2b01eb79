"""Compressed gradients under `DistributedDataParallel`, by a communication hook."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from phalanx.aggregation import Aggregator
from phalanx.communication import AllGather, ProcessGroupCollectives
from phalanx.communication.agreement import StepCheck
from phalanx.communication.point_to_point import Peers
from phalanx.compression import Accordion, Compressor, TensorStates, Uncompressed, average
from phalanx.ddp.aggregation import AggregatedStep
from phalanx.ddp.parameters import trained
from phalanx.ddp.robust_mean import RobustMean
from phalanx.errors import NotFiniteError


class CompressedStep(NamedTuple):
    """What became of the gradients of one step.

    Attributes:
        step: number of the backward pass, from 0.
        payload_bytes: what this rank handed to collectives: messages, their lengths, a flag; not
            the number of the step, 8 bytes to every other rank.
        wire_bytes: what it sent for that; see `ProcessGroupCollectives`.
        dense_bytes: what `payload_bytes` would have been without compression.
        not_finite: the ranks with NaN or infinity in their gradients; the same on all ranks.
    """

    step: int
    payload_bytes: int
    wire_bytes: float
    dense_bytes: int
    not_finite: tuple[int, ...]


class GradientCompression:
    """What `compress` installed: what was sent, and what has to be saved.

    Attributes:
        compressor: how gradients are compressed.
        rule: what takes the place of their mean; None for the mean.
        last: what became of the last gradients; None before the first.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        compressor: Compressor,
        rule: Aggregator | None,
        seed: int,
        start_step: int,
        raise_not_finite: bool,
    ) -> None:
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        self.compressor, self.rule = compressor, rule
        self.last: CompressedStep | None = None
        self._names = trained(
            model,
            hook="compress",
            compressor=compressor,
            rule=rule,
            seed=seed,
            start_step=start_step,
            raise_not_finite=raise_not_finite,
            find_unused_parameters=model.find_unused_parameters,
        )
        self._collectives = ProcessGroupCollectives(model.process_group)
        self._robust = None if rule is None else RobustMean(rule, self._collectives)
        self._memory = TensorStates()
        self._seed, self._start_step = seed, start_step
        self._raises = raise_not_finite
        self._some_unused = model.find_unused_parameters
        self._under_way: list[tuple[Tensor, Future[Tensor]]] = []
        self._peers = Peers(model.process_group)
        self._step_check: StepCheck | None = None
        self._gradients: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        """Backward passes so far."""
        return self._memory.step

    @property
    def times_suspected(self) -> Tensor:
        """`(ranks,)` int64, in how many steps the rule suspected each rank."""
        if self._robust is None:
            return torch.zeros(self._collectives.size, dtype=torch.int64)
        return self._robust.times_suspected

    @property
    def verdict(self) -> AggregatedStep | None:
        """What the rule made of the last gradients; None before the first, and without a rule."""
        return None if self._robust is None else self._robust.last

    def alert(self) -> None:
        """Tells `Accordion` that the learning rate drops: compression is low until its next check.

        Call it on all ranks, between the same two steps.

        Raises:
            ValueError: if the compressor is another one.
        """
        if not isinstance(self.compressor, Accordion):
            raise ValueError(f"compressor must be Accordion to be alerted, got {self.compressor}")
        self._memory = self.compressor.alert(self._memory)

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to go on as if it had not stopped: every rank saves its own.

        Tensors and numbers only: `torch.load(..., weights_only=True)` reads it. What is remembered
        is kept by the names of the parameters of the wrapped module.
        """
        saved = self._memory.state_dict()
        return {
            "rank": self._collectives.rank,
            "num_ranks": self._collectives.size,
            "step": saved["step"],
            "tensors": {name: tensor.clone() for name, tensor in saved["tensors"].items()},
            "robust": {} if self._robust is None else self._robust.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what this rank's `state_dict` gave.

        Raises:
            ValueError: if it is another rank's, or does not fit the number of ranks or the model.
        """
        here = (self._collectives.rank, self._collectives.size)
        if (found := (state["rank"], state["num_ranks"])) != here:
            raise ValueError(
                f"state must be that of rank {here[0]} of {here[1]}, got {found[0]} of {found[1]}"
            )
        memory = TensorStates.from_state_dict(state)
        devices = {name: parameter.device for parameter, name in self._names.items()}
        if unfit := sorted(memory.states.keys() - devices.keys()):
            raise ValueError(f"state must be that of the model's parameters, got {unfit}")
        if bool(state["robust"]) != (self._robust is not None):
            raise ValueError("state must be that of a run with a rule if there is one, and only so")
        states = {
            name: tuple(part.to(devices[name], copy=True) for part in parts)
            for name, parts in memory.states.items()
        }
        self._memory = TensorStates(memory.step, states)
        if self._robust is not None:
            self._robust.load_state_dict(state["robust"])

    def _take(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """Keeps a bucket until the last one of a step, which completes all."""
        flat = bucket.buffer()
        future: Future[Tensor] = Future(devices=[flat.device] if flat.is_cuda else None)
        if not self._under_way:
            self._step_check = StepCheck(self._peers, self.num_steps, flat.device)
        self._under_way.append((flat, future))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._gradients[self._names[parameter]] = gradient
        if bucket.is_last():
            self._complete()
        return future

    def _complete(self) -> None:
        buckets, self._under_way = self._under_way, []
        gradients, self._gradients = self._gradients, {}
        if self._step_check is not None:
            self._step_check.finish()
        step, collectives = self.num_steps, self._collectives
        before = collectives.payload_bytes, collectives.wire_bytes
        sick: tuple[int, ...] = ()
        try:
            self._replace(gradients)
        except NotFiniteError as error:
            sick = tuple(error.workers)
            if self._raises:
                raise
            self._memory = self._memory._replace(step=step + 1)
            for flat, _ in buckets:
                flat.fill_(torch.nan)
        if self.verdict is not None:
            sick = tuple(self.verdict.dropped.nonzero().flatten().tolist())
        self.last = CompressedStep(
            step,
            collectives.payload_bytes - before[0],
            collectives.wire_bytes - before[1],
            sum(flat.numel() * flat.element_size() for flat, _ in buckets),
            sick,
        )
        for flat, future in buckets:
            future.set_result(flat)

    def _replace(self, gradients: Mapping[str, Tensor]) -> None:
        """Puts the mean, or what the rule makes of them, in place of this rank's gradients."""
        compressor = Uncompressed() if self.num_steps < self._start_step else self.compressor
        used = self._used(gradients) if self._some_unused else gradients
        if self._robust is not None:
            found = self._robust(compressor, gradients, used, self._memory, self._seed)
        else:
            worker = average(
                compressor,
                used,
                self._memory,
                seed=self._seed,
                worker=self._collectives.rank,
                num_workers=self._collectives.size,
                in_place=True,
            )
            found = self._collectives.run(worker)
        means, self._memory = found
        for name, mean in means.items():
            if mean.data_ptr() != gradients[name].data_ptr():
                gradients[name].copy_(mean)

    def _used(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients that are not zero on all ranks.

        DDP throws away what a hook makes of parameters that no rank used: what is remembered of
        these has to wait, or it would be lost.
        """
        names = sorted(gradients)
        own = torch.stack([gradients[name].any() for name in names]).view(torch.uint8)
        told = self._collectives.all_gather(AllGather(own, equal=True))
        somewhere = torch.stack(told).amax(dim=0).tolist()
        return {name: gradients[name] for name, used in zip(names, somewhere, strict=True) if used}


def compress(
    model: DistributedDataParallel,
    compressor: Compressor,
    *,
    rule: Aggregator | None = None,
    seed: int = 0,
    start_step: int = 0,
    raise_not_finite: bool = True,
) -> GradientCompression:
    """Has all ranks exchange compressed gradients, in place of DDP's all-reduce.

    One line after the model is wrapped; the loop stays as it is. Every rank ends each backward pass
    with the same gradient: the mean of what all ranks' messages decode to. One backward pass that
    synchronises is one step, in which the gradients of all parameters are exchanged together,
    however DDP cuts them into buckets; the exchange starts with the last bucket. What a compressor
    remembers is kept by the names of parameters.

    After an error in `backward` DDP cannot go on: wrap the model anew, or start from the last
    checkpoint.

    Args:
        model: the wrapped model, without another hook. Any of DDP's options will do.
        compressor: what all ranks use; biased ones within `ErrorFeedback`.
        rule: what aggregates, in place of the mean, what each rank sent; a rank is a worker. All
            messages then go to all ranks, also of compressors that would add on the way. A rank
            whose gradients hold NaN or infinity, or that sends no messages, is dropped and named.
        seed: of the run, the same on all ranks.
        start_step: steps that are not compressed, at the beginning.
        raise_not_finite: whether NaN or infinity on any rank, without a rule, is an error; if not,
            all gradients become NaN on all ranks, as an all-reduce would have it, and
            `torch.amp.GradScaler` skips the step. Nothing of such a step is remembered.

    Returns:
        What tells afterwards what was sent, and is saved with a checkpoint, by each rank its own.

    Raises:
        ValueError: if the model lies on several devices, gradients are not dense and real, there
            are too few ranks for the rule, or `start_step` is negative.
        DisagreementError: on all ranks, if ranks differ in what is said here, in parameters or
            versions; in `backward`, if they are at different steps, which checkpoints may bring
            about.

    Besides, `backward` raises on all ranks `NotFiniteError`, naming those with NaN or infinity;
    `TooManyByzantineError` if there are more of them than the rule survives; `RankLostError` if a
    rank is gone or silent for longer than the group's timeout.

    Cost: that of the compressor; error feedback keeps a copy of the gradient.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from torch.nn.parallel import DistributedDataParallel
    >>> from phalanx.compression import ErrorFeedback, TopK
    >>> from phalanx.ddp import compress
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = DistributedDataParallel(torch.nn.Linear(300, 10))
    >>> handle = compress(model, ErrorFeedback(TopK(ratio=0.01)))
    >>> model(torch.ones(2, 300)).sum().backward()
    >>> handle.last.dense_bytes, handle.last.payload_bytes
    (12040, 160)
    >>> dist.destroy_process_group()
    """
    handle = GradientCompression(model, compressor, rule, seed, start_step, raise_not_finite)
    model.register_comm_hook(handle, _take)
    return handle


def _take(
    handle: GradientCompression,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """The hook as DDP wants it: a function."""
    return handle._take(bucket)
