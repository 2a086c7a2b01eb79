"""Groups of workers that each decode on their own, and checks that codes share."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


def consecutive_groups(lengths: Sequence[int]) -> tuple[range, ...]:
    """Ranges of consecutive workers of the given lengths."""
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return tuple(range(end - length, end) for end, length in zip(ends, lengths, strict=True))


def group_lengths(num_workers: int, size: int) -> list[int]:
    """Lengths of groups of `size`, as many as there can be; the last takes those left over."""
    number = num_workers // size
    return [size] * (number - 1) + [num_workers - size * (number - 1)]


def balanced_groups(num_workers: int, size: int) -> tuple[range, ...]:
    """As many groups as can have `size` members, with the spare workers spread over them."""
    number = num_workers // size
    length, spare = divmod(num_workers, number)
    return consecutive_groups([length + 1] * spare + [length] * (number - spare))


def block_assignment(groups: Sequence[range]) -> Bool[Tensor, "workers partitions"]:
    """Every worker holds the partitions that are numbered like the workers of its group."""
    held: Tensor = torch.block_diag(*(torch.ones(len(group), len(group)) for group in groups))
    return held.bool()


def first_arrived(groups: Sequence[range], arrived: Bool[Tensor, " workers"]) -> list[int | None]:
    """The first worker of each group that arrived; None if nobody did."""
    here = arrived.tolist()
    return [next((worker for worker in group if here[worker]), None) for group in groups]


def circle_lengths(num_workers: int, shortest: int, longest: int) -> list[int]:
    """Lengths of few circles, even or odd as `shortest` is: those need no scaled columns.

    Circles are longer than `longest` only where shorter ones would fall below `shortest`.
    """
    most, parity = num_workers // shortest, shortest % 2
    longest_alike = longest - (longest - parity) % 2
    for number in range(-(-num_workers // longest_alike), most + 1):
        if (num_workers - parity * number) % 2 == 0:  # so many such lengths can add up
            pairs, spare = divmod((num_workers - parity * number) // 2, number)
            return [2 * pairs + 2 + parity] * spare + [2 * pairs + parity] * (number - spare)
    number = min(-(-num_workers // longest), most)
    length, spare = divmod(num_workers, number)
    return [length + 1] * spare + [length] * (number - spare)


def check_stragglers(num_workers: int, num_stragglers: int) -> None:
    """Raises ValueError unless `0 <= num_stragglers < num_workers`."""
    if not 0 <= num_stragglers < num_workers:
        raise ValueError(
            f"num_stragglers must be at least 0 and below num_workers, got {num_stragglers} of "
            f"{num_workers}"
        )


def check_messages(messages: Tensor, arrived: Tensor, num_workers: int) -> None:
    """Raises ValueError unless there is one row, and one flag, for each worker."""
    if messages.ndim != 2 or len(messages) != num_workers:
        raise ValueError(
            f"messages must have shape ({num_workers}, width), got {tuple(messages.shape)}"
        )
    if arrived.shape != (num_workers,):
        raise ValueError(f"arrived must have shape ({num_workers},), got {tuple(arrived.shape)}")


def check_partitions(seen: int, num_partitions: int, *, complete: bool = True) -> None:
    """Raises ValueError if there are more gradients than partitions, or, when complete, fewer."""
    if seen > num_partitions or (complete and seen < num_partitions):
        raise ValueError(
            f"blocks must hold the gradients of {num_partitions} partitions, got {seen}"
        )


def check_owned(given: int, owned: int, worker: int) -> None:
    """Raises ValueError unless a worker gives one gradient for each partition that it owns."""
    if given != owned:
        raise ValueError(
            f"gradients must have one row for each of the {owned} partitions of worker {worker}, "
            f"got {given}"
        )


def name(workers: Sequence[int]) -> str:
    """Workers as an error message names them."""
    if not workers:
        return "none"
    return ", ".join(map(str, workers))
