"""What the views of both servers share."""

from typing import TypeVar

Known = TypeVar("Known")


def learnt(value: Known | None) -> Known:
    """What an earlier step of the round left behind.

    Raises:
        ValueError: if that step was left out.
    """
    if value is None:
        raise ValueError("the steps of a round must be taken in their order, one was left out")
    return value
