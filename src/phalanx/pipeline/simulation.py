"""Compressed pipeline simulated in one process."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from phalanx.compression import Compressor, SampleQuantization
from phalanx.pipeline.activation_difference import ActivationDifference
from phalanx.pipeline.base import ActivationCodec
from phalanx.pipeline.boundary import ActivationBoundary
from phalanx.pipeline.settings import Crossed
from phalanx.pipeline.splitting import crossings

Loss = Callable[[Tensor, Tensor], Tensor]


class SimulatedPipeline:
    """A model in stages in one process, for studies: the same values as among processes.

    Attributes:
        stages: the modules; gradients are left in their parameters.
        senders: the side before each boundary.
        receivers: the side after it; the same objects if `wire` is off.
        errors: of the last batch, by boundary: `||m - a|| / ||a||`, where m is what the receiver
            went on from; empty unless asked for.

    >>> import torch
    >>> from torch import nn
    >>> from phalanx.pipeline import SimulatedPipeline
    >>> stages = [nn.Linear(4, 8), nn.Linear(8, 2)]
    >>> pipeline = SimulatedPipeline(
    ...     stages, torch.zeros(1, 4), nn.functional.cross_entropy, num_samples=6
    ... )
    >>> ids = torch.arange(6)
    >>> for _ in range(2):
    ...     loss = pipeline.step(ids, torch.randn(6, 4), ids % 2)
    >>> pipeline.senders[0].traffic  # 6 * 8 values of 4 bytes, and of half a byte with a scale
    BoundaryTraffic(activation_bytes=240, gradient_bytes=264, full_samples=6, coarse_samples=6)
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
        num_microbatches: int = 1,
        wire: bool = True,
        measure: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Boundaries that have seen nothing yet.

        Args:
            stages: in order.
            example: an input of the first stage.
            loss: mean over the samples of a micro-batch, of outputs and targets.
            num_samples: of the training set.
            forward: how activations are compressed, by default `ActivationDifference(bits=4)`.
            backward: how their gradients are, by default `SampleQuantization(bits=8)`.
            num_microbatches: parts of a batch.
            wire: whether bytes are written and read, with two sides to each boundary; without, one
                side does for both, to the same values in less time.
            measure: whether `errors` are computed.
            seed: of stochastic rounding.
            options: `warmup_epochs`, `buffer`, `buffer_dtype`, `buffer_bits`, `folder`, `checksum`
                and `num_epochs`, as for `CompressedPipeline`.

        Raises:
            ValueError: as `CompressedPipeline` does.
        """
        if num_microbatches < 1:
            raise ValueError(f"num_microbatches must be at least 1, got {num_microbatches}")
        crossed = Crossed(
            num_samples,
            ActivationDifference() if forward is None else forward,
            SampleQuantization() if backward is None else backward,
            seed=seed,
            **options,
        )
        found = crossings(stages, example[:1])
        crossed.warn_of_noise(stages)
        self.stages = list(stages)
        self.estimate = crossed.estimate(found)
        self.errors: list[float] = []
        self._loss, self._num_microbatches = loss, num_microbatches
        self._wire, self._measure = wire, measure

        def side() -> list[ActivationBoundary]:
            return [
                crossed.boundary(one, str(place), example.device)
                for place, one in enumerate(found[:-1])
            ]

        self.senders = side()
        self.receivers = side() if wire else self.senders

    def step(self, ids: Int64[Tensor, " batch"], inputs: Tensor, targets: Tensor) -> Tensor:
        """One batch forward and back; leaves its mean gradient in the parameters, zeroed before.

        Returns:
            The mean loss.

        Raises:
            ValueError: if the batch has no equal parts.
            NotFiniteError: if there is NaN or infinity in what crosses.
        """
        parts = self._num_microbatches
        if not len(ids) or len(ids) % parts:
            raise ValueError(f"a batch must be a multiple of {parts} micro-batches, got {len(ids)}")
        errors, losses = [], []
        split = zip(*(one.tensor_split(parts) for one in (ids, inputs, targets)), strict=True)
        for micro_ids, micro_inputs, micro_targets in split:
            value, found = self._micro(micro_ids, micro_inputs, micro_targets)
            losses.append(value)
            errors.append(found)
        if parts > 1:  # as torch's schedules do it
            for stage in self.stages:
                for weight in stage.parameters():
                    if weight.grad is not None:
                        weight.grad /= parts
        self.errors = [sum(one) / parts for one in zip(*errors, strict=True)]
        return torch.stack(losses).mean()

    def _micro(self, ids: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[float]]:
        made, handed, plans, errors = [], [], [], []
        passed = inputs
        for place, stage in enumerate(self.stages):
            output = stage(passed)
            if place == len(self.stages) - 1:
                break
            sender, receiver = self.senders[place], self.receivers[place]
            plan = sender.plan(ids)
            passed = self._carry(sender, receiver, output, plan).detach().clone().requires_grad_()
            if self._measure:
                exact = output.detach()
                errors.append(float((passed.detach() - exact).norm() / exact.norm()))
            made.append(output)
            handed.append(passed)
            plans.append(plan)
        loss = self._loss(output, targets)
        loss.backward()
        for place in reversed(range(len(made))):
            gradient = handed[place].grad
            assert gradient is not None
            if self._wire:
                data = self.receivers[place].send_gradients(gradient, plans[place])
                gradient = self.senders[place].receive_gradients(data, plans[place])
            else:
                gradient = self.senders[place].carry_gradients(gradient, plans[place])
            made[place].backward(gradient)
        return loss.detach(), errors

    def _carry(
        self, sender: ActivationBoundary, receiver: ActivationBoundary, output: Tensor, plan: Any
    ) -> Tensor:
        if not self._wire:
            return sender.carry_activations(output, plan)
        ids = plan.ids
        return receiver.receive_activations(
            sender.send_activations(output, plan), receiver.plan(ids)
        )

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The outputs for other samples; nothing is compressed or remembered."""
        passed = inputs
        for stage in self.stages:
            passed = stage(passed)
        return passed

    def state_dict(self) -> dict[str, Any]:
        """All sides of all boundaries; buffers are the buffers themselves, not copies."""
        return {
            "senders": [one.state_dict() for one in self.senders],
            "receivers": [one.state_dict() for one in self.receivers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError: if it is that of another pipeline.
        """
        for name, own in (("senders", self.senders), ("receivers", self.receivers)):
            for one, saved in zip(own, state[name], strict=True):
                one.load_state_dict(saved)
