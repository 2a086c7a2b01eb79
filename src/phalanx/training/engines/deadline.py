"""Deadline of a call: how long to wait for more replies."""

import time

import torch

from phalanx.training.engines.base import Collector, Waiting


class Deadline:
    """Deadline of a call, by the engine's and by the waiting policy, as replies come in.

    Args:
        deadline_s: seconds from the start after which nobody is waited for.
        num_workers: how many workers there are.
        began: `time.monotonic()` at the start.
        waiting: the policy, and what it remembers.
    """

    def __init__(self, deadline_s: float, num_workers: int, began: float, waiting: Waiting) -> None:
        self._began, self._deadline_s = began, deadline_s
        self._policy, self._memory = waiting
        self._arrivals = torch.full((num_workers,), torch.inf, dtype=torch.float64)

    def left_s(self) -> float:
        """Seconds until the call is over, if no reply comes."""
        return max(0.0, self._end_s() - self._passed_s())

    def see(self, worker: int, collector: Collector) -> None:
        """Notes when a worker answered, unless its message is of no use."""
        if self._policy is not None and collector.usable(worker):
            self._arrivals[worker] = self._passed_s()

    def remember(self) -> tuple[float, ...]:
        """What the policy remembers once the call is over."""
        if self._policy is None:
            return self._memory
        end_s = min(self._end_s(), self._passed_s())
        return self._policy.update(self._arrivals, end_s, self._memory)

    def _end_s(self) -> float:
        if self._policy is None:
            return self._deadline_s
        return min(self._deadline_s, self._policy.ends_at(self._arrivals, self._memory).item())

    def _passed_s(self) -> float:
        return time.monotonic() - self._began
