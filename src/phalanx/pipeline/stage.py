"""Stage of `torch.distributed.pipelining` whose neighbours exchange bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from phalanx.errors import naming
from phalanx.pipeline.boundary import ActivationBoundary, MicrobatchPlan
from phalanx.pipeline.splitting import Crossing

Method = TypeVar("Method", bound=Callable[..., Any])

SCHEDULES: dict[str, type[ScheduleGPipe | Schedule1F1B]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
}
"""Torch's orders of passes that a stage here fits into."""


def _own(compute: Method) -> Method:
    """Has a stage know that what fails in this method is its own."""

    @wraps(compute)
    def run(stage: "CompressedStage", *args: Any, **kwargs: Any) -> Any:
        try:
            return compute(stage, *args, **kwargs)
        except Exception as error:
            stage.own_error = error
            raise

    return cast(Method, run)


class CompressedStage(PipelineStage):
    """A `PipelineStage` for `ScheduleGPipe` and `Schedule1F1B`, one stage a process.

    Schedules ask a stage for the operations that send and receive a micro-batch, and to compute
    it. Those six public methods are overridden: operations carry bytes, and the tensor that the
    stage goes on from is put where torch would have received it (the `buffer` of `args_recv_info`
    and `grad_recv_info`); what it made is taken from `fwd_cache` and `bwd_cache`. That much of
    torch's insides is relied on. Shapes are given and not asked for over the network, so torch
    exchanges no pickled metadata.

    In a pass without ids, as in evaluation, activations travel as they are and are not remembered.

    Torch raises a `RuntimeError` for most of what may fail. What fails while this stage computes is
    its own; all else is waiting for neighbours, and is named so (`neighbours_named`).
    """

    def __init__(
        self,
        module: nn.Module,
        crossings: list[Crossing],
        example: Tensor,
        index: int,
        boundaries: tuple[ActivationBoundary | None, ActivationBoundary | None],
        group: dist.ProcessGroup | None,
    ) -> None:
        """A stage for micro-batches of one size.

        Args:
            module: what is computed here.
            crossings: what every stage hands on.
            example: a micro-batch of the first stage; only its shape and dtype count.
            index: of this stage.
            boundaries: the one before and the one after; None at the ends.
            group: the processes of the pipeline, stage by stage.
        """
        batch = len(example)
        ends = [
            torch.empty(batch, *one.shape, dtype=one.dtype, device=example.device)
            for one in crossings
        ]
        for end in ends[:-1]:
            end.requires_grad_()
        super().__init__(
            module,
            index,
            len(crossings),
            example.device,
            input_args=example if index == 0 else ends[index - 1],
            output_args=ends[index],
            group=group,
        )
        self.before, self.after = boundaries
        self._batch, self._crossings = batch, crossings
        self._ids: tuple[Tensor, ...] | None = None
        self._plans: dict[tuple[str, int], MicrobatchPlan] = {}
        self._arriving: dict[tuple[str, int], Tensor] = {}
        self._leaving: dict[tuple[str, int], Tensor] = {}
        self.own_error: Exception | None = None

    @contextmanager
    def neighbours_named(self) -> Iterator[None]:
        """Turns errors of a pass that are not this stage's own into a `RankLostError`."""
        self.own_error = None
        try:
            yield
        except RuntimeError as error:
            if error is self.own_error:
                raise
            with naming(what="a pass of the pipeline"):
                raise

    @_own
    def loss(
        self, loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
    ) -> Tensor:
        """What the last stage is for."""
        return loss(outputs, targets)

    def begin(self, ids: Int64[Tensor, " batch"] | None, num_microbatches: int) -> None:
        """Is told the samples of the next pass, or that there are none to remember."""
        self._ids = None if ids is None else ids.tensor_split(num_microbatches)
        for kept in (self._plans, self._arriving, self._leaving):
            kept.clear()

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Bytes from the stage before."""
        if self.before is None:
            return []
        if self._ids is None:
            return super().get_fwd_recv_ops(fwd_chunk_id)
        plan = self.before.plan(self._ids[fwd_chunk_id])
        self._plans["before", fwd_chunk_id] = plan
        return self._receive("forward", fwd_chunk_id, self.before.num_activation_bytes(plan), -1)

    @_own
    def forward_one_chunk(
        self,
        fwd_chunk_id: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        save_forward_output: bool = True,
    ) -> Any:
        """Decodes what came, computes, encodes what goes on."""
        if self.before is not None and self._ids is not None:
            data = self._arriving.pop(("forward", fwd_chunk_id))
            plan = self._plans["before", fwd_chunk_id]
            # Torch turns the tensor into a leaf of the graph: it must share memory with no other.
            received = self.before.receive_activations(data, plan).clone()
            self.args_recv_info[fwd_chunk_id][0].buffer = received
        output = super().forward_one_chunk(fwd_chunk_id, args, kwargs, save_forward_output)
        if self.after is not None and self._ids is not None:
            plan = self.after.plan(self._ids[fwd_chunk_id])
            self._plans["after", fwd_chunk_id] = plan
            made = self.fwd_cache[fwd_chunk_id][0][0]
            self._leaving["forward", fwd_chunk_id] = self.after.send_activations(made, plan)
        return output

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Bytes to the stage after."""
        if self.after is None or self._ids is None:
            return super().get_fwd_send_ops(fwd_chunk_id)
        return self._send("forward", fwd_chunk_id, 1)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Bytes from the stage after."""
        if self.after is None or not self.has_backward:
            return []
        length = self.after.num_gradient_bytes(self._plans["after", bwd_chunk_id])
        return self._receive("backward", bwd_chunk_id, length, 1)

    @_own
    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Decodes what came back, computes, encodes what goes further back."""
        if not self.has_backward:  # schedules ask for it in evaluation, too
            return
        if self.after is not None:
            data = self._arriving.pop(("backward", bwd_chunk_id))
            gradients = self.after.receive_gradients(data, self._plans["after", bwd_chunk_id])
            self.grad_recv_info[bwd_chunk_id][0].buffer = gradients
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        if self.before is not None:
            gradient = self.bwd_cache.pop(bwd_chunk_id)[0]
            if gradient is None:
                raise ValueError(f"stage {self.stage_index} must use what it is handed, got no use")
            plan = self._plans["before", bwd_chunk_id]
            self._leaving["backward", bwd_chunk_id] = self.before.send_gradients(gradient, plan)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Bytes to the stage before."""
        if self.before is None or not self.has_backward:
            return []
        return self._send("backward", bwd_chunk_id, -1)

    def _receive(self, way: str, chunk: int, length: int, step: int) -> list[dist.P2POp]:
        data = torch.empty(length, dtype=torch.uint8, device=self.device)
        self._arriving[way, chunk] = data
        return [dist.P2POp(dist.irecv, data, self._peer(step), self.group)]

    def _send(self, way: str, chunk: int, step: int) -> list[dist.P2POp]:
        data = self._leaving.pop((way, chunk))
        return [dist.P2POp(dist.isend, data, self._peer(step), self.group)]

    def _peer(self, step: int) -> int:
        """Global rank of a neighbour."""
        group = self.group if self.group is not None else dist.group.WORLD
        assert group is not None
        return dist.get_global_rank(group, self.stage_index + step)
