"""Errors that a caller would act on. Bad arguments are plain `ValueError`s."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial


class PhalanxError(Exception):
    """Base of every error that the package raises by name."""


class TooManyByzantineError(PhalanxError):
    """More messages are unusable than a robust rule tolerates.

    Attributes:
        workers: ids of the workers whose messages were unusable.
        bound: how many the rule survives.
    """

    def __init__(self, message: str, *, workers: Sequence[int], bound: int) -> None:
        super().__init__(message)
        self.workers = list(workers)
        self.bound = bound

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its keyword arguments, so that it crosses process borders whole."""
        return _rebuild, (type(self), str(self), self.workers, self.bound)


class DecodeError(TooManyByzantineError):
    """The messages that arrived do not determine the result: more faults than the code survives.

    Attributes:
        workers: ids of the workers known to be missing or Byzantine, or of the group that failed.
        bound: how many Byzantine workers the code survives (`num_byzantine`); how many missing
            messages, for a code against erasures alone.
    """


class RankLostError(PhalanxError):
    """A rank of a process group is gone, or silent for longer than the group's timeout.

    Attributes:
        ranks: those of which it is known; whoever stops because another one did is named as well.
    """

    def __init__(self, message: str, *, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = list(ranks)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its keyword argument, so that it crosses process borders whole."""
        return partial(type(self), str(self), ranks=self.ranks), ()


class FolderInUseError(PhalanxError, ValueError):
    """Another process writes to the folder, or may do so."""


class CheckpointError(PhalanxError, ValueError):
    """No checkpoint of a run is whole: there is nothing to go on from."""


class LedgerError(PhalanxError, ValueError):
    """A privacy ledger is missing, damaged or another run's: what was spent is unknown."""


class BudgetExceededError(PhalanxError):
    """The next release would exceed the privacy budget; it was not made."""


class StorageError(PhalanxError):
    """A file could not be written: the disk is full, say. What stood there before is whole."""


class EngineLostError(PhalanxError):
    """What runs the workers is gone, such as Ray; the last checkpoint is what remains."""


class WorkerError(PhalanxError):
    """All workers that were given a task raised an exception.

    The cause (`__cause__`) is the exception of one of them, as far as it can be sent; a note holds
    its traceback.

    Attributes:
        reasons: the exceptions in a line each, by worker.
    """

    def __init__(self, message: str, *, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its keyword argument, so that it crosses process borders whole."""
        return partial(type(self), str(self), reasons=self.reasons), ()


class DisagreementError(PhalanxError, ValueError):
    """Ranks of a process group were told different things, or are at different steps.

    Attributes:
        ranks: those that differ from most, or from this one.
    """

    def __init__(self, message: str, *, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = list(ranks)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its keyword argument, so that it crosses process borders whole."""
        return partial(type(self), str(self), ranks=self.ranks), ()


@contextmanager
def naming(peer: int | None = None, what: str | None = None) -> Iterator[None]:
    """Turns a failure of torch.distributed into one that callers can act on.

    Args:
        peer: the rank that is waited for, if it is one.
        what: the collective under way.

    Raises:
        RankLostError: if the block fails, which it does when a rank is gone or silent for too long.
    """
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one
        lost = "a rank" if peer is None else f"rank {peer}"
        where = "" if what is None else f" in {what}"
        raise RankLostError(
            f"{lost} is gone{where}, or silent for longer than the timeout of the process group: "
            f"{error}",
            ranks=[] if peer is None else [peer],
        ) from error


class EmulationError(PhalanxError, ValueError):
    """This machine cannot emulate links, or may not; the message says what is missing."""


class MoreThanDistancesError(PhalanxError, ValueError):
    """A rule asks for more than distances between messages where nothing else is known of them."""


class ReusedRandomnessError(PhalanxError):
    """Randomness that hides messages was about to be used a second time, which would show them."""


class ServerLostError(PhalanxError):
    """A server of a protocol died, does not answer in time, or answers what it must not."""


def _rebuild(
    kind: type[TooManyByzantineError], message: str, workers: list[int], bound: int
) -> TooManyByzantineError:
    return kind(message, workers=workers, bound=bound)


class WireError(PhalanxError):
    """Bytes that came from a peer are not a message of this compressor about this tensor."""


def require(holds: bool, rule: str) -> None:
    """Raises a `WireError` with the rule that a message breaks."""
    if not holds:
        raise WireError(f"message must {rule}")


class DriftError(PhalanxError):
    """Two sides that must remember the same of a sample do not: go on from the last checkpoint."""


class NotFiniteError(PhalanxError):
    """Tensors with NaN or infinity were to be averaged; nothing was, and no memory changed.

    Attributes:
        workers: ids of the workers that hold them.
    """

    def __init__(self, message: str, *, workers: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.workers = list(workers)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its keyword arguments, so that it crosses process borders whole."""
        return _not_finite, (str(self), self.workers)


def _not_finite(message: str, workers: list[int]) -> NotFiniteError:
    return NotFiniteError(message, workers=workers)
