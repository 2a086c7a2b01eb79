"""Process pool that runs cells; a process may die at any moment."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch

from phalanx.experiments.grid import Cell
from phalanx.experiments.records import Record

_TRIES = 2  # a cell whose process dies is tried once more
_CONTEXT = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork

RunCell = Callable[[Cell], Record]
Started = Callable[[Cell], None]


class _Member(NamedTuple):
    process: BaseProcess
    pipe: Connection


def run_here(
    cells: Iterable[Cell], run: RunCell, started: Started
) -> Iterator[tuple[Cell, Record]]:
    """Runs cells one after the other in this process.

    Args:
        cells: what to run.
        run: gives the record of a cell.
        started: called with a cell when it begins.
    """
    for cell in cells:
        started(cell)
        yield cell, run(cell)


def run_in_processes(
    cells: Iterable[Cell], run: RunCell, jobs: int, started: Started
) -> Iterator[tuple[Cell, Record]]:
    """Runs cells in processes that stay, and gives each record when it is done.

    A process that dies is replaced, and its cell tried once more; then it counts as failed. The
    processes end when this one does, however it ends.

    Args:
        cells: what to run.
        run: gives the record of a cell; a function of a module.
        jobs: how many processes.
        started: called with a cell when it begins, and again if it is tried again.

    Raises:
        ChildProcessError: if a process ends before it could begin with any cell.
    """
    waiting, tries, busy = deque(cells), Counter[str](), dict[Connection, Cell]()
    members: dict[Connection, _Member] = {}
    try:
        while waiting or busy:
            while len(members) < min(jobs, len(waiting) + len(busy)):
                member = _start(run)
                members[member.pipe] = member
            for pipe in wait(list(members)):
                assert isinstance(pipe, Connection)
                cell = busy.pop(pipe, None)
                try:
                    record = pipe.recv()
                except (EOFError, OSError):
                    ended = _end(members.pop(pipe))
                    if cell is None:
                        raise ChildProcessError(_stillborn(ended)) from None
                    if tries[cell.identity] < _TRIES:
                        waiting.appendleft(cell)
                    else:
                        reason = f"its process ended {_TRIES} times ({ended})"
                        yield cell, Record(cell.labels, "failed", reason)
                    continue
                if waiting:
                    following = waiting.popleft()
                    tries[following.identity] += 1
                    busy[pipe] = following
                    started(following)
                    with suppress(OSError):  # it has died meanwhile, which `wait` reports
                        pipe.send(following)
                else:
                    _end(members.pop(pipe))
                if cell is not None:
                    yield cell, record
    finally:
        for member in members.values():
            member.process.kill()
        for member in members.values():
            _end(member)


def _start(run: RunCell) -> _Member:
    here, there = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(there, run), daemon=True)
    with _uninterrupted():
        process.start()
    there.close()  # so that the end of the process is the end of the pipe
    return _Member(process, here)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started inside leave Ctrl-C to this one, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end(member: _Member) -> str:
    """Ends a process; says how it ended, if it had."""
    member.pipe.close()
    member.process.join(timeout=0.2)
    ended = member.process.exitcode
    if ended is None:
        member.process.kill()
        member.process.join()
    member.process.close()
    if ended is not None and ended < 0:
        return f"signal {signal.Signals(-ended).name}"
    return f"exit code {ended}"


def _stillborn(ended: str) -> str:
    return (
        f"a worker process ended before it began ({ended}); a script that measures in several "
        'processes must do so under `if __name__ == "__main__":`, or with jobs=1'
    )


def _serve(pipe: Connection, run: RunCell) -> None:
    """Runs the cells that come in, until the other end is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    pipe.send(None)
    try:
        while True:
            pipe.send(run(pipe.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # nobody waits for it any more


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
