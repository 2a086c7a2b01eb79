"""Cost of sending to many at once: unicast against multicast datagrams over loopback."""

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

_GROUP, _HOST = "239.77.1.1", "127.0.0.1"
_BUFFER_BYTES = 1 << 20  # of a receiver, for all that is sent before it is read
_COUNT, _SIZE, _ROUNDS = 64, 1024, 31


def multicast_ratio(num_receivers: int) -> float | None:
    """Seconds of a message to each of n receivers over those of one to all (gamma in the paper).

    Datagrams of 1 KiB over this machine's loopback, from the first send until the last receiver has
    read the last; medians. There is no medium that all share: what is compared is the work of the
    kernel, which a multicast asks for once, and of the receivers, which it does not spare.

    Returns:
        The ratio; None where the machine has no multicast over loopback.
    """
    try:
        with ExitStack() as stack:
            single, group = ([_receiver(stack) for _ in range(num_receivers)] for _ in range(2))
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port = _join(group)
            host = socket.inet_aton(_HOST)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, host)
            for one in single:
                one.bind((_HOST, 0))
            each = [one.getsockname() for one in single]
            unicast_s = _seconds(sender, each, single)
            return unicast_s / _seconds(sender, [(_GROUP, port)], group)
    except OSError:
        return None


def _receiver(stack: ExitStack) -> socket.socket:
    found = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    found.settimeout(5.0)  # what is lost is an OSError, not a hang
    return found


def _join(group: Sequence[socket.socket]) -> int:
    """Binds all to one port of the group's address, and says which."""
    port = 0
    membership = socket.inet_aton(_GROUP) + socket.inet_aton(_HOST)
    for one in group:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((_GROUP, port))
        one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        port = one.getsockname()[1]
    return port


def _seconds(
    sender: socket.socket, addresses: Sequence[tuple[str, int]], receivers: Sequence[socket.socket]
) -> float:
    message, times = bytes(_SIZE), []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_COUNT):
            for address in addresses:
                sender.sendto(message, address)
        for one in receivers:
            for _ in range(_COUNT):
                one.recv(_SIZE)
        times.append(time.perf_counter() - began)
    return median(times)
