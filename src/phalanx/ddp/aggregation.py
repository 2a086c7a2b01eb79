"""Robust aggregation, or decoding, of the gradients of `DistributedDataParallel`, by a hook."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from phalanx.aggregation import Aggregator
from phalanx.coding import Code
from phalanx.communication.agreement import StepCheck
from phalanx.communication.point_to_point import Peers
from phalanx.ddp.coded import Decoder, ShardedCode, message_loss
from phalanx.ddp.collective import choose
from phalanx.ddp.memory import ParameterMemory
from phalanx.ddp.parameters import trained
from phalanx.ddp.sharded import as_pipeline, remembers
from phalanx.floats import widest
from phalanx.parameters import ParameterLayout


class AggregatedStep(NamedTuple):
    """What a rule made of the gradients of one step; the same on all ranks.

    Attributes:
        step: number of the backward pass that was aggregated, from 0.
        weights: `(ranks,)` float64, what the gradient of each rank counted; None where the rule is
            coordinate-wise.
        scores: `(ranks,)` float64; higher is more suspicious; infinite for dropped ranks.
        dropped: `(ranks,)` bool; the ranks whose gradients were not finite.
        suspects: `(ranks,)` bool; the dropped ranks, and those that the rule left out or found far
            off: suspicion, no proof, see `Aggregate`.
        outvoted: `(ranks,)` bool; the ranks that aggregated wrongly, for certain as long as no more
            than `num_byzantine_aggregators` of a group do; nobody without votes.
        error: `Decoded.error` of a code; None from rules, which estimate none.

    Of a code there are no weights, scores are 1 for suspects and 0 for others, and nobody is
    dropped: a rank whose message is not finite is a suspect. Its suspects are proven, see
    `Decoded`.
    """

    step: int
    weights: Float[Tensor, " ranks"] | None
    scores: Float[Tensor, " ranks"]
    dropped: Bool[Tensor, " ranks"]
    suspects: Bool[Tensor, " ranks"]
    outvoted: Bool[Tensor, " ranks"]
    error: float | None = None


class GradientAggregation:
    """What `aggregate` installed: what happened, and what has to be saved.

    Attributes:
        rule: how gradients are aggregated: a robust rule, or a code.
        num_steps: backward passes aggregated so far.
        last: what became of the last one; None before the first.
        times_suspected: `(ranks,)` int64, in how many steps each rank was a suspect. Under rules
            that leave out f of n in every step, honest ranks are f times in n.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        rule: Aggregator | Code,
        num_byzantine_aggregators: int = 0,
    ) -> None:
        names = trained(
            model, hook="aggregate", rule=rule, num_byzantine_aggregators=num_byzantine_aggregators
        )
        peers = Peers(model.process_group)
        self.rule = rule
        self.num_steps = 0
        self.last: AggregatedStep | None = None
        self.times_suspected = torch.zeros(peers.size, dtype=torch.int64)
        self._names, self._rank = names, peers.rank
        self._pipeline = as_pipeline(rule)
        self._memory = ParameterMemory() if remembers(self._pipeline) else None
        self._under_way: list[_Bucket] = []
        self._peers = peers
        self._step_check: StepCheck | None = None
        self._collective = choose(
            rule,
            peers,
            length=sum(parameter.numel() for parameter in names),
            max_pieces=len(names),
            dtype=widest({parameter.dtype for parameter in names}),
            num_byzantine_aggregators=num_byzantine_aggregators,
        )

    def loss(self, losses: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The loss whose gradient is this rank's message in the code: call `backward` on it.

        Args:
            losses: `(samples,)`, of a batch that `CodedSampler` made and in its order; or the mean
                loss of each of the rank's partitions. Every partition's mean is multiplied by
                the rank's weight for it (`Code.encoding`), and all are added up.

        Raises:
            ValueError: if gradients are aggregated by a rule, which has no messages but gradients;
                or there are not equally many samples of each partition.
        """
        if not isinstance(self.rule, ShardedCode):
            raise ValueError(f"rule must be a code for its loss, got {self.rule}")
        return message_loss(self.rule, self._rank, losses)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on as if it had not stopped; the same on all ranks.

        Tensors and numbers only: `torch.load(..., weights_only=True)` reads it. The memory of the
        rule is kept by the names of the parameters of the wrapped module.
        """
        return {
            "num_steps": self.num_steps,
            "times_suspected": self.times_suspected.clone(),
            "memory": {} if self._memory is None else self._memory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; all ranks load the same.

        Raises:
            ValueError: if it does not fit the model or the number of ranks.
        """
        times, memory = state["times_suspected"], state["memory"]
        if times.shape != self.times_suspected.shape:
            raise ValueError(
                f"state must be that of {len(self.times_suspected)} ranks, got {len(times)}"
            )
        sizes = {name: parameter.numel() for parameter, name in self._names.items()}
        if unfit := [name for name, part in memory.items() if sizes.get(name) != part.numel()]:
            raise ValueError(f"state must be that of the model's parameters, got {unfit}")
        if memory and self._memory is None:
            raise ValueError(f"state must hold no memory for {type(self.rule).__name__}")
        self.num_steps = int(state["num_steps"])
        self.times_suspected = times.clone()
        if self._memory is not None:
            self._memory.load_state_dict(memory)

    def _take(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """Sends a bucket on its way; the last one of a step completes all."""
        flat = bucket.buffer()
        parameters = bucket.parameters()
        layout = ParameterLayout(
            tuple(self._names[parameter] for parameter in parameters),
            tuple((parameter.numel(),) for parameter in parameters),
            flat.dtype,
        )
        future: Future[Tensor] = Future(devices=[flat.device] if flat.is_cuda else None)
        if not self._under_way:
            self._step_check = StepCheck(self._peers, self.num_steps, flat.device)
        self._under_way.append(_Bucket(layout, flat, future))
        memory = None
        if self._memory is not None:
            fresh = self._pipeline.init(len(flat), dtype=flat.dtype, device=flat.device)[1]
            memory = self._memory.read(layout, fresh)
        self._collective.post(flat, memory)
        if bucket.is_last():
            self._complete()
        return future

    def _complete(self) -> None:
        buckets, self._under_way = self._under_way, []
        if self._step_check is not None:
            self._step_check.finish()
        answer, outvoted = self._collective.finish(self.num_steps)
        if self._memory is not None:
            self._memory.replace({one.layout: one.flat for one in buckets})
        error = self._pipeline.error if isinstance(self._pipeline, Decoder) else None
        self.last = AggregatedStep(self.num_steps, *answer[1:], outvoted, error)
        self.times_suspected += answer.suspects
        self.num_steps += 1
        for bucket in buckets:
            bucket.future.set_result(bucket.flat)


class _Bucket(NamedTuple):
    layout: ParameterLayout
    flat: Tensor
    future: Future[Tensor]


def aggregate(
    model: DistributedDataParallel,
    rule: Aggregator | Code,
    *,
    num_byzantine_aggregators: int = 0,
) -> GradientAggregation:
    """Has a robust rule take the place of the mean over the gradients of all ranks.

    One line after the model is wrapped; the loop stays as it is. Every rank ends each backward pass
    with the same gradient: what the rule makes of the whole gradients of all ranks, as if they were
    one vector each, however DDP cuts them into buckets. Buckets set off while the backward pass
    goes on, and the rule decides when the last one has come.

    A gradient with a NaN or an infinity is dropped, and its rank named. More of them than the rule
    survives is an error in `backward`, on all ranks; as after any error there, DDP cannot go on:
    wrap the model anew, or start from the last checkpoint.

    With a code, every rank's gradient is a message: batches come from a `CodedSampler`, and
    `backward` is called on `handle.loss(losses)`. Every rank decodes its share of the columns, and
    all come to one verdict; each ends with the mean gradient of the code's partitions.

    Args:
        model: the wrapped model, without another hook. Any of DDP's options will do.
        rule: how to aggregate, or the code by which to decode: `DracoRepetition`, `DracoCyclic` or
            any linear code against stragglers. A rank is a worker.
        num_byzantine_aggregators: ranks that may be Byzantine while they aggregate (s); see
            `robust_all_reduce`. None with a code.

    Returns:
        What tells afterwards who was suspected and dropped, and is saved with a checkpoint.

    Raises:
        ValueError: if there are too few ranks for the rule, the model lies on several devices, or
            gradients are not dense and real; all that does not fit is named.
        DisagreementError: on all ranks, if ranks differ in rule, parameters or versions; in
            `backward`, if they are at different steps, which checkpoints may bring about.

    Cost: see `robust_all_reduce`; a copy of the gradient besides, and two where the rule remembers.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from torch.nn.parallel import DistributedDataParallel
    >>> from phalanx.aggregation import GeometricMedian
    >>> from phalanx.ddp import aggregate
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = DistributedDataParallel(torch.nn.Linear(3, 1))
    >>> handle = aggregate(model, GeometricMedian())
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> handle.last.suspects
    tensor([False])
    >>> dist.destroy_process_group()
    """
    handle = GradientAggregation(model, rule, num_byzantine_aggregators)
    model.register_comm_hook(handle, _take)
    return handle


def _take(
    handle: GradientAggregation,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """The hook as DDP wants it: a function."""
    return handle._take(bucket)
