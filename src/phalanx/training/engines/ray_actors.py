"""Jobs on Ray that are no training: actors with something to hold, and how they end."""

import math
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from phalanx.training.engines.ray_connection import STORE_BYTES, connect, import_ray

# Not `typing.Self`: the runtime checks of the tests read annotations one function at a time.
_Session = TypeVar("_Session", bound="ActorSession")


@dataclass(frozen=True)
class RayActors:
    """Where the workers of a job are: processes on this machine or a Ray cluster."""

    address: str | None = None
    """Address of a running cluster, such as '10.0.0.1:6379' or 'auto'; by default Ray is started on
    this machine for the job. A connection that this process has to Ray already is used as it is."""

    deadline_s: float = 60.0
    """Seconds after which a worker that has not answered is given up."""

    start_timeout_s: float = 120.0
    """Seconds that the start of the job waits for workers."""

    threads_per_worker: int = 1
    """Threads of torch in each worker."""

    cpus_per_worker: float = 0.01
    """Cores that Ray sets aside for each worker: for placement, it limits nothing."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "start_timeout_s"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {seconds}")
        if self.threads_per_worker < 1:
            raise ValueError(
                f"threads_per_worker must be at least 1, got {self.threads_per_worker}"
            )
        if not 0 <= self.cpus_per_worker < math.inf:
            raise ValueError(
                f"cpus_per_worker must be finite and at least 0, got {self.cpus_per_worker}"
            )


class ActorSession:
    """Actors that were started; a context manager that kills them."""

    def __init__(self, settings: RayActors, held_bytes: int) -> None:
        """Connects to Ray, or starts it.

        Args:
            settings: where the workers are.
            held_bytes: what the workers and messages take of shared memory.
        """
        self.ray: ModuleType = import_ray(type(settings).__name__)
        self.settings = settings
        self.actors: list[Any] = []
        self._owns_ray = connect(self.ray, settings.address, STORE_BYTES + held_bytes)

    def start(self, kind: type, *arguments: object, **options: object) -> Any:
        """A new actor."""
        return (
            self.ray.remote(kind)
            .options(
                num_cpus=self.settings.cpus_per_worker,
                scheduling_strategy="SPREAD",  # else Ray fills up one machine first
                **options,
            )
            .remote(*arguments)
        )

    def await_start(self) -> None:
        """Waits for the workers; those that are not ready in time may be so later."""
        ready = [actor.__ray_ready__.remote() for actor in self.actors]
        self.ray.wait(ready, num_returns=len(ready), timeout=self.settings.start_timeout_s)

    def close(self) -> None:
        """Kills the workers, and ends Ray if it was started for them."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []
        if self._owns_ray:
            self.ray.shutdown()
            self._owns_ray = False

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
