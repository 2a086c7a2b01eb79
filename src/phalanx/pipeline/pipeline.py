"""Compressed pipeline training on several processes."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn

from phalanx.communication.agreement import require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.communication.wire import from_buffer
from phalanx.compression import Compressor, SampleQuantization, TensorStates
from phalanx.errors import DisagreementError
from phalanx.parameters import sparse_gradients, unfit_parameters
from phalanx.pipeline.activation_difference import ActivationDifference
from phalanx.pipeline.base import ActivationCodec
from phalanx.pipeline.boundary import ActivationBoundary, BoundaryTraffic
from phalanx.pipeline.buffers import BufferKind
from phalanx.pipeline.gradients import average_gradients
from phalanx.pipeline.settings import Crossed
from phalanx.pipeline.splitting import crossings

Loss = Callable[[Tensor, Tensor], Tensor]
_SCHEDULES = ("gpipe", "1f1b")
_log = logging.getLogger(__name__)


class CompressedPipeline:
    """A model in stages, one a process, whose activations and gradients cross in few bits.

    The loop stays the user's: `step` leaves gradients in `module`, an optimizer of one's own uses
    them. Schedules are those of `torch.distributed.pipelining`. Several pipelines beside each other
    average the gradients of a stage among its `replicas`, compressed as well.

    Every sample needs an id that stays the same, from 0 on; replicas should keep their samples, as
    each pays the full first visit of what it has not seen.

    Attributes:
        module: this process's stage.
        index: its number.
        estimate: what the buffers of all stages take.

    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from torch import nn
    >>> from phalanx.pipeline import CompressedPipeline
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> pipeline = CompressedPipeline(
    ...     [nn.Linear(4, 2)], torch.zeros(1, 4), nn.functional.cross_entropy, num_samples=8
    ... )
    >>> ids = torch.arange(8)
    >>> loss = pipeline.step(ids, torch.randn(8, 4), ids % 2)
    >>> loss.ndim, pipeline.module.weight.grad.shape
    (0, torch.Size([2, 4]))
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        example: Tensor,
        loss: Loss,
        *,
        num_samples: int,
        forward: ActivationCodec | Compressor | None = None,
        backward: Compressor | None = None,
        warmup_epochs: int = 1,
        buffer: BufferKind = "memory",
        buffer_dtype: torch.dtype = torch.float16,
        buffer_bits: int = 4,
        folder: Path | None = None,
        checksum: bool = False,
        num_microbatches: int = 1,
        schedule: Literal["gpipe", "1f1b"] = "gpipe",
        num_epochs: int | None = None,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
        gradients: Compressor | None = None,
        replicas: dist.ProcessGroup | None = None,
    ) -> None:
        """Takes this process's stage, and makes its boundaries.

        Args:
            stages: all of them, in order, the same on all processes; those of other processes may
                lie on the meta device. See `split`.
            example: an input of the first stage, on this process's device; of it only the shape
                of one sample and the dtype count.
            loss: mean over the samples of a micro-batch, of outputs and targets.
            num_samples: of the training set.
            forward: how activations are compressed, by default `ActivationDifference(bits=4)`;
                a compressor instead sends them without memory.
            backward: how their gradients are, by default `SampleQuantization(bits=8)`.
            warmup_epochs: visits of a sample in which nothing of it is compressed.
            buffer: where activations are remembered: `memory`, `disk`, or rounded in `low_bit`.
            buffer_dtype: of them in memory and on disk: float16, float32 or float64.
            buffer_bits: of them in a low-bit buffer.
            folder: for buffers on disk; by default a temporary one.
            checksum: whether receivers check that both sides remember the same.
            num_microbatches: parts of a batch, which pass through the stages one after the other.
            schedule: `gpipe`, all forward and then all backward; or `1f1b`, which keeps fewer
                micro-batches and needs as many as there are stages at least.
            num_epochs: how often each sample will be visited, if that is known; once is refused.
            seed: of stochastic rounding.
            group: the processes of this pipeline, stage by stage; all of them by default.
            gradients: how gradients of replicas are compressed, `ErrorFeedback` around a biased
                compressor.
            replicas: the processes that hold this stage in the several pipelines.

        Raises:
            ValueError: if an argument is out of its range, there is not one stage a process, a
                stage hands on anything but one floating-point tensor, a buffer does not fit, or
                gradients of replicas are not dense and real.
            DisagreementError: on all processes, if they were told different things.
        """
        if num_microbatches < 1:
            raise ValueError(f"num_microbatches must be at least 1, got {num_microbatches}")
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be gpipe or 1f1b, got {schedule}")
        if len(stages) != dist.get_world_size(group):
            raise ValueError(
                f"stages must be one a process, got {len(stages)} of "
                f"{dist.get_world_size(group)} processes"
            )
        if schedule == "1f1b" and num_microbatches < len(stages):
            raise ValueError(
                f"num_microbatches must be at least the {len(stages)} stages for 1f1b, "
                f"got {num_microbatches}"
            )
        if (gradients is None) != (replicas is None):
            raise ValueError("gradients and replicas must be given together, got one of them")
        crossed = Crossed(
            num_samples,
            ActivationDifference() if forward is None else forward,
            SampleQuantization() if backward is None else backward,
            warmup_epochs,
            buffer,
            buffer_dtype,
            buffer_bits,
            folder,
            checksum,
            seed,
            num_epochs,
        )
        self.index = dist.get_rank(group)
        self._peers = Peers(group)
        self.module = stages[self.index]
        self._crossings = crossings(stages, example[:1])
        self.estimate = crossed.estimate(self._crossings)
        facts = {field.name: getattr(crossed, field.name) for field in fields(crossed)}
        del facts["folder"]  # each process has its own
        facts |= {"crossings": self._crossings, "gradients": gradients, "schedule": schedule}
        facts |= {"hook": "CompressedPipeline", "num_microbatches": num_microbatches}
        require_agreement(self._peers, facts, example.device)
        if replicas is not None:
            named = dict(self.module.named_parameters())
            problems = unfit_parameters(named)
            if sparse := sparse_gradients(self.module):
                problems.append(f"gradients must be dense: those of {sparse} are sparse")
            if problems:
                raise ValueError("; ".join(problems))
            layout = [(name, tuple(one.shape), one.dtype) for name, one in named.items()]
            require_agreement(Peers(replicas), {"parameters": layout, **facts}, example.device)
        crossed.warn_of_noise(stages)
        _log.info(
            "activations of %s samples take %s bytes on each side of each boundary",
            num_samples,
            self.estimate.side_bytes,
        )
        self._example, self._loss, self._group = example, loss, group
        self._num_microbatches, self._schedule = num_microbatches, schedule
        device = example.device
        self.before: ActivationBoundary | None = None
        self.after: ActivationBoundary | None = None
        if self.index:
            name = str(self.index - 1)
            self.before = crossed.boundary(self._crossings[self.index - 1], name, device)
        if self.index + 1 < len(stages):
            name = str(self.index)
            self.after = crossed.boundary(self._crossings[self.index], name, device)
        self._gradients, self._replicas, self._seed = gradients, replicas, seed
        self._memory = TensorStates()
        self._num_steps = 0
        self._made: dict[tuple[int, bool], tuple[Any, Any]] = {}

    @property
    def is_first(self) -> bool:
        """Whether this process takes the inputs."""
        return self.before is None

    @property
    def is_last(self) -> bool:
        """Whether this process takes the targets, and knows outputs and loss."""
        return self.after is None

    @property
    def traffic(self) -> tuple[BoundaryTraffic, BoundaryTraffic]:
        """What has crossed the boundary before this stage, and the one after; nothing at ends."""
        before, after = (BoundaryTraffic() if one is None else one.traffic for one in self._ends)
        return before, after

    @property
    def _ends(self) -> tuple[ActivationBoundary | None, ActivationBoundary | None]:
        return self.before, self.after

    def step(
        self,
        ids: Int64[Tensor, " batch"],
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor | None:
        """One batch forward and back; leaves its mean gradient in the parameters of `module`.

        All processes call it with the same ids. Gradients must be zero or None before: those of
        several micro-batches are divided by their number in the end.

        Args:
            ids: of the samples.
            inputs: of them; needed by the first stage, ignored by the others.
            targets: of them; needed by the last stage, ignored by the others.

        Returns:
            The mean loss on the last stage, None on the others.

        Raises:
            ValueError: if the batch has no equal parts, or something that is needed is missing.
            DisagreementError: if processes are at different steps, or have different ids.
            NotFiniteError: if activations or gradients of this stage are not finite. Neighbours
                wait until this process ends, or for the timeout of the group.
            WireError: if a neighbour's bytes are not what was to come.
            DriftError: if both sides of a boundary remember different things.
            RankLostError: if a process is gone, or silent for longer than the group's timeout.
        """
        if self.is_last and targets is None:
            raise ValueError("targets must be given on the last stage, got None")
        stage, schedule = self._prepare(len(ids), inputs, training=True)
        stage.begin(ids, self._num_microbatches)
        self._same_step(ids)
        losses: list[Tensor] = []
        with stage.neighbours_named():
            schedule.step(
                *((inputs,) if self.is_first else ()),
                target=targets if self.is_last else None,
                losses=losses if self.is_last else None,
                return_outputs=False,
            )
        if self._gradients is not None:
            self._memory = average_gradients(
                self.module, self._gradients, self._memory, seed=self._seed, group=self._replicas
            )
        return torch.stack(losses).mean().detach() if self.is_last else None

    def _same_step(self, ids: Tensor) -> None:
        """Compares the number of the step and the ids among all stages."""
        own = hashlib.blake2b(
            repr((self._num_steps, ids.tolist())).encode(), digest_size=8
        ).digest()
        told = self._peers.gather(from_buffer(own).to(self._example.device))
        odd = [rank for rank, row in enumerate(told) if not torch.equal(row, told[self.index])]
        if odd:
            raise DisagreementError(
                f"all stages must take the same step with the same ids, step {self._num_steps} of "
                f"{len(ids)} here, got another one on ranks {odd}",
                ranks=odd,
            )
        self._num_steps += 1

    @torch.no_grad()
    def predict(self, num_inputs: int, inputs: Tensor | None = None) -> Tensor | None:
        """The outputs for other samples, which are not remembered; nothing is compressed.

        Args:
            num_inputs: how many there are, on all processes.
            inputs: needed by the first stage.

        Returns:
            The outputs on the last stage, None on the others.

        Raises:
            RankLostError: if a process is gone, or silent for longer than the group's timeout.
        """
        stage, schedule = self._prepare(num_inputs, inputs, training=False)
        stage.begin(None, self._num_microbatches)
        with stage.neighbours_named():
            found: Tensor | None = schedule.eval(*((inputs,) if self.is_first else ()))
        return found

    def prefetch(self, ids: Int64[Tensor, " batch"]) -> None:
        """Says which samples come next, so that buffers on disk are read ahead."""
        for one in self._ends:
            if one is not None and one.buffer is not None:
                one.buffer.prefetch(ids)

    def _prepare(self, size: int, inputs: Tensor | None, *, training: bool) -> tuple[Any, Any]:
        """Torch's stage and schedule for batches of this size."""
        # Imported where it is used: torch takes a second to load its pipelines.
        from phalanx.pipeline.stage import SCHEDULES, CompressedStage

        if not size or size % self._num_microbatches:
            raise ValueError(
                f"a batch must be a multiple of {self._num_microbatches} micro-batches, got {size}"
            )
        if self.is_first and (inputs is None or len(inputs) != size):
            raise ValueError(f"inputs must be of {size} samples on the first stage")
        micro = size // self._num_microbatches
        if (micro, training) not in self._made:
            shape = (micro, *self._example.shape[1:])
            example = torch.empty(shape, dtype=self._example.dtype, device=self._example.device)
            stage = CompressedStage(
                self.module, self._crossings, example, self.index, self._ends, self._group
            )
            make = SCHEDULES[self._schedule]
            self._made[micro, training] = (
                stage,
                make(
                    stage,
                    self._num_microbatches,
                    loss_fn=partial(stage.loss, self._loss) if training else None,
                ),
            )
        return self._made[micro, training]

    def state_dict(self) -> dict[str, Any]:
        """What this process needs besides module and optimizer to go on as if it had not stopped.

        Tensors and numbers only: `torch.load(..., weights_only=True)` reads it. Buffers are the
        buffers themselves, not copies: save them before the next step.
        """
        sides = {"before": self.before, "after": self.after}
        return {
            "step": self._num_steps,
            "gradients": self._memory.state_dict(),
            **{name: one.state_dict() for name, one in sides.items() if one is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave on the same stage.

        Raises:
            ValueError: if it is that of another stage or data set.
        """
        sides = {"before": self.before, "after": self.after}
        wanted = {name for name, one in sides.items() if one is not None}
        if wanted != set(state) & {"before", "after"}:
            raise ValueError(f"state must be that of stage {self.index}, got {sorted(state)}")
        for name, one in sides.items():
            if one is not None:
                one.load_state_dict(state[name])
        self._num_steps = int(state["step"])
        self._memory = TensorStates.from_state_dict(state["gradients"])
