"""Checkpoint of a run: the state between two rounds, as tensors and plain values."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from phalanx.errors import CheckpointError

_LISTS = ("decoder", "waiting", "standing", "spread")
_MAPPINGS = ("attack", "workers", "callbacks")


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two rounds."""

    step: int
    """The round to go on with."""
    composition: dict[str, Any]
    """What the run is made of."""
    parameters: Tensor
    """`(dim,)`, the trained parameters."""
    server_step: Any
    """What the server step dumped."""
    decoder: list[Tensor] = field(default_factory=list)
    """What the decoder remembers."""
    attack: dict[str, Any] = field(default_factory=dict)
    """What a simulated attack remembers: `past` broadcasts, and `plans` by rank."""
    waiting: list[float] = field(default_factory=list)
    """What the waiting policy remembers."""
    policy: str = ""
    """Whose memory that is."""
    workers: dict[int, dict[str, list[Tensor]]] = field(default_factory=dict)
    """What workers remember, by id and stage."""
    standing: list[Any] = field(default_factory=list)
    """Suspicions and exclusions of the workers."""
    spread: list[Any] = field(default_factory=list)
    """What the monitor of gradient diversity remembers."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """What callbacks remember."""

    def content(self) -> dict[str, Any]:
        """As it is written: what `torch.load(weights_only=True)` reads."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**found, "composition": json.dumps(self.composition)}

    @classmethod
    def read(cls, content: Any) -> "Checkpoint":
        """The checkpoint that was written.

        Raises:
            ValueError: if something is missing, or not of its type.
        """
        names = {one.name for one in fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise ValueError(f"it must hold {', '.join(sorted(names))}")
        try:
            made = json.loads(content["composition"])
        except (TypeError, ValueError):
            made = None
        found = cls(**{**content, "composition": made})
        fits = {
            "step": type(found.step) is int and found.step >= 0,
            "composition": isinstance(made, dict),
            "parameters": isinstance(found.parameters, Tensor) and found.parameters.ndim == 1,
            "policy": isinstance(found.policy, str),
            **{name: isinstance(content[name], list) for name in _LISTS},
            **{name: isinstance(content[name], dict) for name in _MAPPINGS},
        }
        if wrong := [name for name, right in fits.items() if not right]:
            raise ValueError(f"what it holds is of another type: {', '.join(wrong)}")
        return found


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What a checkpoint holds is put in place: an error says that it does not fit there.

    Raises:
        CheckpointError: if the block fails.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint of {folder} does not hold what this run needs: {error!r}"
        ) from error
