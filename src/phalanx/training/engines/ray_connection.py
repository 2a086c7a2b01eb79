"""Connection of this process to a Ray cluster."""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

STORE_BYTES = 2**28  # of shared memory at least; it is only taken as it is written to


def import_ray(user: str) -> ModuleType:
    """Ray, for somebody who says who needs it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"{user} needs Ray: pip install 'phalanx[ray]'") from error
    module: ModuleType = ray
    return module


def connect(ray: ModuleType, address: str | None, store_bytes: int) -> bool:
    """Connects this process to Ray, quietly; whether that is ours to end."""
    if ray.is_initialized():
        return False
    local = {"include_dashboard": False, "object_store_memory": store_bytes}
    with _without_usage_stats():
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    return True


def raylet_process(ray: ModuleType) -> int | None:
    """Process id of this machine's raylet, which every call to Ray goes through.

    None where that cannot be known: only Linux tells who listens at a socket.
    """
    node = ray._private.worker._global_node
    if node is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(socket.AF_UNIX) as asked:
        try:
            asked.connect(node.raylet_socket_name)
            answer = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    process: int = struct.unpack("3i", answer)[0]
    return process


def has_ended(process: int | None) -> bool:
    """Whether a process is gone, or dead and not buried."""
    if process is None:
        return False
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


@contextmanager
def _without_usage_stats() -> Iterator[None]:
    """Ray reports home by default; the variable that forbids it is put back as it was."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
