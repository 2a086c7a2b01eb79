"""How the workers are cut into groups, each of which decodes on its own."""

from collections.abc import Sequence

from torch import Tensor


def consecutive_groups(lengths: Sequence[int]) -> tuple[range, ...]:
    """Ranges of consecutive workers of the given lengths."""
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return tuple(range(end - length, end) for end, length in zip(ends, lengths, strict=True))


def group_lengths(num_workers: int, size: int) -> list[int]:
    """Lengths of groups of `size`, as many as there can be; the last takes those left over."""
    number = num_workers // size
    return [size] * (number - 1) + [num_workers - size * (number - 1)]


def check_bound(num_workers: int, num_byzantine: int) -> None:
    """Raises ValueError unless `num_workers >= 2 num_byzantine + 1`."""
    if num_byzantine < 0:
        raise ValueError(f"num_byzantine must be at least 0, got {num_byzantine}")
    if num_workers < 2 * num_byzantine + 1:
        raise ValueError(
            f"num_byzantine must be below num_workers / 2, got {num_byzantine} of {num_workers}"
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
