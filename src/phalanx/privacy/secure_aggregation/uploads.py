"""What workers sent, round by round, until a server closes the round."""

import re
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.transport import NotNowError, RoundOverError, worker_name
from phalanx.privacy.secure_aggregation.worker_server import WorkerServerView

AdversaryKnowledge = TypeVar("AdversaryKnowledge", ModelServerView, WorkerServerView)

_AHEAD = 2  # rounds that are open at a time: the servers do not close a round together


class Uploads(Generic[AdversaryKnowledge]):
    """The views of the rounds that are open, filled by many threads.

    Args:
        fresh: an empty view of either server, for a round.
    """

    def __init__(self, fresh: Callable[[int], AdversaryKnowledge]) -> None:
        self._fresh: Callable[[int], AdversaryKnowledge] = fresh
        self._open = 0
        self._views: dict[int, AdversaryKnowledge] = {}
        self._changed = threading.Condition()

    def take(self, name: str, share: Any) -> None:
        """Takes a share in; one that carries somebody else's id marks its sender.

        Raises:
            RoundOverError: if the round is over.
            NotNowError: if it is not open yet.
        """
        with self._changed:
            if share.round < self._open:
                raise RoundOverError(f"round {share.round} is over, {self._open} is open")
            if share.round >= self._open + _AHEAD:
                raise NotNowError(f"round {share.round} is not open yet, {self._open} is")
            if name == worker_name(share.worker):
                self._views[share.round] = self._view(share.round).receive(share)
                self._changed.notify_all()
        if name != worker_name(share.worker):
            self.mark(name)

    def mark(self, name: str) -> None:
        """Notes that somebody sent something malformed; whose name is no worker's is left out."""
        found = re.fullmatch(r"worker (\d+)", name)
        if found:
            with self._changed:
                self._views[self._open] = self._view(self._open).mark(int(found[1]))
                self._changed.notify_all()

    def wait_for(
        self, done: Callable[[AdversaryKnowledge], bool], round: int, timeout_s: float
    ) -> bool:
        """Waits until the view of a round is as wanted, or time is up; says which."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self._view(round)), timeout_s)

    def finish(self, round: int) -> AdversaryKnowledge:
        """The view of a round; closes it and all before, and opens the next."""
        with self._changed:
            view = self._view(round)
            self._open = round + 1
            self._views = {one: kept for one, kept in self._views.items() if one > round}
            return view

    def _view(self, round: int) -> AdversaryKnowledge:
        return self._views.get(round, self._fresh(round))
