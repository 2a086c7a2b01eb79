"""Robust aggregation of compressed gradients on every rank."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.aggregation import Aggregator, State
from phalanx.communication import ProcessGroupCollectives
from phalanx.compression import Compressor, TensorStates, gather
from phalanx.ddp.aggregation import AggregatedStep
from phalanx.floats import working
from phalanx.parameters import ParameterLayout


class RobustMean:
    """Every rank decodes the messages of all ranks, and runs the rule on them.

    Cost: `n` gradients of memory in float32 and the rule's time on each of n ranks. Ranks of other
    hardware or software may round otherwise, and drift apart.

    Attributes:
        rule: how to aggregate; a rank is a worker.
        last: what it made of the last step; None before the first.
        times_suspected: `(ranks,)` int64, in how many steps each rank was suspected.
    """

    def __init__(self, rule: Aggregator, collectives: ProcessGroupCollectives) -> None:
        """Checks the rule.

        Raises:
            ValueError: if there are too few ranks for it.
        """
        rule.num_tolerated(collectives.size)
        self.rule, self._collectives = rule, collectives
        self.last: AggregatedStep | None = None
        self.times_suspected = torch.zeros(collectives.size, dtype=torch.int64)
        self._state: State | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers; the same on all ranks."""
        return {
            "times_suspected": self.times_suspected.clone(),
            "rule": [part.clone() for part in self._state or ()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.times_suspected = state["times_suspected"].clone()
        self._state = tuple(part.clone() for part in state["rule"]) or None

    def __call__(
        self,
        compressor: Compressor,
        gradients: Mapping[str, Tensor],
        used: Mapping[str, Tensor],
        memory: TensorStates,
        seed: int,
    ) -> tuple[dict[str, Tensor], TensorStates]:
        """One step.

        Args:
            compressor: what all ranks use in it.
            gradients: of this rank, by name.
            used: those of them that are sent; the others count as zeros.
            memory: what the compressor remembers.
            seed: of the run.

        Returns:
            The aggregate, and the next memory.

        Raises:
            TooManyByzantineError: if more ranks than the rule survives have NaN or infinity in
                their gradients, or send no messages.
        """
        collectives, step = self._collectives, memory.step
        sent, memory = collectives.run(
            gather(
                compressor,
                used,
                memory,
                seed=seed,
                worker=collectives.rank,
                num_workers=collectives.size,
            )
        )
        layout = ParameterLayout.like({name: gradients[name] for name in sorted(gradients)})
        rows = self._stacked(sent, layout, next(iter(gradients.values())).device)
        if self._state is None:
            self._state = self.rule.init(rows.shape[1], dtype=rows.dtype, device=rows.device)
        answer, self._state = self.rule.update(rows, self._state)
        nobody = torch.zeros_like(answer.dropped)
        self.last = AggregatedStep(step, *answer[1:], nobody)
        self.times_suspected += answer.suspects.cpu()
        return layout.unflatten(answer.value), memory

    def _stacked(
        self,
        sent: list[dict[str, Tensor] | None],
        layout: ParameterLayout,
        device: torch.device,
    ) -> Tensor:
        """`(ranks, dim)`: what each rank sent; NaN, which rules drop, where it sent nothing."""
        rows = torch.zeros(len(sent), layout.dim, dtype=working(layout.dtype), device=device)
        for row, tensors in zip(rows, sent, strict=True):
            if tensors is None:
                row.fill_(torch.nan)
                continue
            parts = layout.unflatten(row)
            for name, value in tensors.items():
                parts[name].copy_(value)
        return rows
