"""Messages between ranks of torch.distributed, and the side of a worker's rank."""

import pickle
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import product
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.training.engines.base import Failure, Reply, Site, Task, WorkerFactory
from phalanx.training.engines.packing import pack, unpack

TASKS, CONTROL = 1, 2
"""Tags: of tasks, one after the other, and of what is heard beside them."""

Encoded = tuple[Tensor, Tensor]
"""Lengths of the pieces, and the pieces: what is pickled, and the tensors, which are not copied
into it."""


class Make(NamedTuple):
    """Asks for the worker to be made."""

    worker: int
    factory: WorkerFactory
    own: Any
    site: Site


class Run(NamedTuple):
    """Asks for a task to be done."""

    task: Task


class Drop(NamedTuple):
    """Tells that nobody waits for the tasks up to a number."""

    number: int


class Close(NamedTuple):
    """Tells that a session ends."""


class Leave(NamedTuple):
    """Tells that there will be no other session."""


def encode(value: Any) -> Encoded:
    """A value as bytes, once for all ranks that it is sent to."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    pieces = [
        np.frombuffer(head, np.uint8),
        *(np.frombuffer(one.raw(), np.uint8) for one in buffers),
    ]
    lengths = torch.tensor([len(one) for one in pieces], dtype=torch.int64)
    return lengths, torch.from_numpy(np.concatenate(pieces))


def send(message: Encoded, rank: int, tag: int) -> None:
    """Sends a value to a rank; blocks until it is taken over."""
    lengths, content = message
    dist.send(torch.tensor([len(lengths)]), rank, tag=tag)
    dist.send(lengths, rank, tag=tag)
    dist.send(content, rank, tag=tag)


def receive(rank: int, tag: int) -> Any:
    """The next value that a rank sends; blocks until it is there."""
    number = torch.zeros(1, dtype=torch.int64)
    dist.recv(number, rank, tag=tag)
    lengths = torch.zeros(int(number), dtype=torch.int64)
    dist.recv(lengths, rank, tag=tag)
    content = torch.empty(int(lengths.sum()), dtype=torch.uint8)
    dist.recv(content, rank, tag=tag)
    head, *buffers = (one.numpy() for one in content.split(lengths.tolist()))
    return pickle.loads(head, buffers=buffers)


def release(ranks: Iterable[int]) -> None:
    """Ends what `serve` does on these ranks, as far as they are there."""
    message = encode(Leave())
    for rank, tag in product(ranks, (TASKS, CONTROL)):
        with suppress(RuntimeError):
            send(message, rank, tag)


def serve() -> None:
    """Does what rank 0 asks for, session after session, until it leaves or is gone."""
    rank = _Rank()
    listener = Thread(target=rank.listen, daemon=True, name="phalanx-listener")
    listener.start()
    rank.work()
    listener.join()


class _Rank:
    """A worker's rank: one thread is at tasks, another hears that they are of no use any more."""

    def __init__(self) -> None:
        self._worker: Any = None
        self._number, self._over = 0, 0

    def work(self) -> None:
        """Takes tasks up in order."""
        while (message := _next(TASKS)) is not None:
            if isinstance(message, Close):
                self._worker = None
                continue
            self._number += 1
            self._answer(TASKS, message, partial(self._is_over, self._number))

    def listen(self) -> None:
        """Takes up what comes beside the tasks."""
        while (message := _next(CONTROL)) is not None:
            if isinstance(message, Drop):
                self._over = message.number
            elif isinstance(message, Run):
                self._answer(CONTROL, message, lambda: False)

    def _is_over(self, number: int) -> bool:
        return number <= self._over

    def _answer(self, tag: int, message: Make | Run, is_over: Callable[[], bool]) -> None:
        try:
            answer: Reply | Failure = self._do(message, is_over)
        except Exception as error:  # whatever the user's code raises is the server's to tell
            answer = _failure(error)
        try:
            send(encode(answer), 0, tag)
        except RuntimeError:  # the server is gone, which the next receive notices
            return

    def _do(self, message: Make | Run, is_over: Callable[[], bool]) -> Reply:
        if isinstance(message, Make):
            owned = {message.worker: unpack(message.own)}
            (self._worker,) = message.factory.make(owned, message.site)
            return Reply()
        reply = unpack(message.task).run(self._worker, is_over)
        if reply.delay_s:
            time.sleep(reply.delay_s)
        sent: Reply = reply._replace(value=pack(reply.value))
        return sent


def _next(tag: int) -> Any:
    """The next message from rank 0; None once it has left or is gone."""
    try:
        message = receive(0, tag)
    except RuntimeError:
        return None
    return None if isinstance(message, Leave) else message


def _failure(error: Exception) -> Failure:
    """An exception as far as it can be sent."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of the user's class may refuse in any way
        return Failure(RuntimeError(f"{type(error).__name__}: {error}"), trace)
    return Failure(error, trace)
