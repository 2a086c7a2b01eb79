"""Relay between TUN devices in user space: a switch with bandwidth, latency, jitter and loss.

    python tun_relay.py --rate 1e8 --delay_s 0.02 --devices a b c

makes the devices, says so in a line, and relays until its input ends. Who started it gives the
device at place `i` the address `x.x.x.(i + 1)`, wherever that device is by then: it may be moved to
another network namespace. One process of Python carries about 1 Gbit/s.
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Sequence

MTU = 9000  # large packets: their number, and not their size, is what the relay's time goes into
_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
_QUEUE_S = 0.4  # what would wait longer for the links is dropped


class Links:
    """When a packet arrives; nothing but arithmetic.

    A packet takes its turn on the sender's link, then on the receiver's, each of so many bits a
    second. The receiver's takes it while the sender's still does, so that a packet that meets no
    other needs the time of one link. The latency comes on top. Packets of one sender to one
    receiver never overtake each other, whatever the jitter.
    """

    def __init__(
        self, rate: float, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0
    ) -> None:
        """Nothing is under way.

        Args:
            rate: bits a second of each end's link, each way; may be infinite.
            delay_s: latency, one way.
            jitter_s: the latency is longer by as much as this, drawn uniformly for each packet.
            loss: probability of a packet to be lost.
        """
        self.rate, self.delay_s, self.jitter_s, self.loss = rate, delay_s, jitter_s, loss
        self._random = random.Random(0)
        self._sent: dict[int, float] = {}  # when a link is free again, by its end
        self._received: dict[int, float] = {}
        self._arrived: dict[tuple[int, int], float] = {}

    def due(self, now: float, sender: int, receiver: int, num_bytes: int) -> float | None:
        """When a packet that is sent now arrives; None if it is lost."""
        taken = 8 * num_bytes / self.rate
        sent = max(now, self._sent.get(sender, now)) + taken
        received = max(sent, self._received.get(receiver, now) + taken)
        if received - taken - now > _QUEUE_S:
            return None
        self._sent[sender] = sent
        if self._random.random() < self.loss:
            return None
        self._received[receiver] = received
        delay = self.delay_s + self.jitter_s * self._random.random()
        pair = sender, receiver
        self._arrived[pair] = max(received + delay, self._arrived.get(pair, now))
        return self._arrived[pair]


def relay(devices: Sequence[int], links: Links, stop: int) -> None:
    """Carries packets between open TUN devices until `stop` can be read: its other end is closed.

    Args:
        devices: file descriptors, by the last number of the address less 1.
        links: says when.
        stop: file descriptor.
    """
    places = {device: place for place, device in enumerate(devices)}
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0  # packets of the same time leave in the order in which they came
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready = select.select([stop, *devices], [], [], pause)[0]
        if stop in ready:
            return
        now = time.monotonic()
        for device in ready:
            packet = os.read(device, MTU)
            receiver = packet[19] - 1  # the last byte of an IPv4 destination
            if packet[0] >> 4 != 4 or not 0 <= receiver < len(devices):
                continue
            due = links.due(now, places[device], receiver, len(packet))
            if due is not None:
                count += 1
                heapq.heappush(waiting, (due, count, devices[receiver], packet))
        while waiting and waiting[0][0] <= now:
            _, _, device, packet = heapq.heappop(waiting)
            os.write(device, packet)


def opened(name: str) -> int:
    """A new TUN device, which is gone as soon as its file is closed.

    Raises:
        OSError: if this machine has none, or does not allow it.
    """
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    return device


def main() -> None:
    """Makes the devices, and relays until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=float("inf"), help="bits a second")
    parser.add_argument("--delay_s", type=float, default=0.0)
    parser.add_argument("--jitter_s", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--devices", nargs="+", required=True)
    options = parser.parse_args()
    try:
        devices = [opened(name) for name in options.devices]
    except OSError as error:
        sys.exit(f"a TUN device cannot be made: {error}")
    print("ready", flush=True)
    links = Links(options.rate, options.delay_s, options.jitter_s, options.loss)
    relay(devices, links, sys.stdin.fileno())


if __name__ == "__main__":
    main()
