"""Inbox of the server: every message is checked before it is taken."""

from collections.abc import Callable

import torch
from jaxtyping import Num
from torch import Tensor

from phalanx.errors import WireError
from phalanx.training.engines.base import Collector
from phalanx.training.worker_state import WorkerState


class Inbox(Collector):
    """Messages of a round; a malformed one marks its sender and never stops the run.

    The table is written in place, so that a round costs no second copy of the messages; messages
    that are the rows of one table already, as those of one process are, are taken over with it.

    Args:
        messages: `(workers, width)`, the table; its shape and dtype are what messages must have.
        decode: reads a message as it was sent, and raises a `WireError` if it is none.
    """

    def __init__(
        self,
        messages: Num[Tensor, "workers width"],
        decode: Callable[[Tensor], Tensor],
    ) -> None:
        self.messages = messages
        self._decode = decode
        self.clear()

    def clear(self) -> None:
        """Starts a round: nobody has arrived."""
        self.arrived = torch.zeros(len(self.messages), dtype=torch.bool)
        self.losses = torch.full((len(self.messages),), torch.nan, dtype=torch.float64)
        self.missing: dict[int, str] = {}
        self.states: dict[int, WorkerState] = {}  # of those that sent theirs
        self._num_bytes = torch.zeros(len(self.messages), dtype=torch.int64)

    def take(self, worker: int, value: object) -> None:
        """Takes in what a worker replied: a `Sent`, of no trusted content."""
        # Not by the value's own methods, which may be anything.
        parts = tuple.__getitem__(value, slice(2)) if isinstance(value, tuple) else (value,)
        message, loss = parts if len(parts) == 2 else (value, None)
        self.put(worker, message, loss if type(loss) is float else torch.nan)
        state = tuple.__getitem__(value, slice(2, 3)) if isinstance(value, tuple) else ()
        if state and type(state[0]) is dict:
            self.states[worker] = state[0]

    def put(self, worker: int, message: object, loss: float = torch.nan) -> None:
        """Takes a message in, or marks its sender."""
        # A subclass may do anything in place of an operation; sparse and meta ones have no rows.
        plain = type(message) is Tensor and message.layout == torch.strided and not message.is_meta
        if not isinstance(message, Tensor) or not plain:
            self.refuse(worker, "wrong type")
            return
        if message.requires_grad:  # or else the table would, and all that comes of it
            message = message.detach().clone()
        try:
            values = self._decode(message.to(self.messages.device))
        except WireError as error:
            self.refuse(worker, str(error))
            return
        self._num_bytes[worker] = message.nbytes
        table = values._base  # of which the message is a row, where one process made them all
        if table is not None and not self.arrived.any() and table.shape == self.messages.shape:
            self.messages = table
        if self.messages[worker].data_ptr() != values.data_ptr():
            self.messages[worker] = values
        self.arrived[worker] = True
        self.losses[worker] = loss
        self.missing.pop(worker, None)

    def refuse(self, worker: int, reason: str) -> None:
        """Records why there is no message from a worker."""
        self.arrived[worker] = False
        self.missing[worker] = reason

    def usable(self, worker: int) -> bool:
        """Whether a worker's message is here, and finite: decoders take others for missing."""
        return bool(self.arrived[worker]) and bool(self.messages[worker].isfinite().all())

    @property
    def message_bytes(self) -> int:
        """Bytes of the messages that arrived, without what a transport adds."""
        return int(self._num_bytes[self.arrived].sum())
