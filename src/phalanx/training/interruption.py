"""Interruption by Ctrl-C or SIGTERM: the loop stops between two rounds."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def graceful() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a flag: no round is torn; the second kills."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        previous = {}
    try:
        yield lambda: asked
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
