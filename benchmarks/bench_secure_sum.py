"""Secure sums by pairwise masks against the plain sum of the same vectors: time and bytes.

    python benchmarks/bench_secure_sum.py [--quick] [--threads 1]

All parties run in one process, one after the other; clients and server are timed apart.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from measurement import cell, write_measurement
from phalanx.privacy import SumClient, SumRange, SumSetup, run_secure_sum
from side_by_side import environment

CLAIM = "Secure sums by pairwise masks, against the plain sum"
SIZES = [(clients, width) for width in (10_000, 100_000, 1_000_000) for clients in (10, 30, 100)]
COLUMNS = {
    "clients": "clients",
    "width": "numbers",
    "dropped": "drop out",
    "client_s": "s, a client",
    "server_s": "s, the server",
    "ratio": "all parties / the plain sum",
    "up_ratio": "up / float32",
    "down_kb": "down, kB a client",
}
REMARK = (
    "Words of 32 bits, thresholds of more than two thirds. Who drops out does so before it sends "
    "its masked vector. Seconds are those of the processor, since all parties are one process; a "
    "client works in four phases, of which all are counted. The plain sum is that of the float32 "
    "vectors. Bytes are those of one client: up against its vector in float32, down without the "
    "model."
)
_REPEATS = 3  # of which the median is taken; one of more than 20 M numbers in all
_LARGE = 20_000_000


class Sum:
    """One secure sum with its seconds and bytes."""

    def __init__(self, values: torch.Tensor, dropped: int) -> None:
        self.values, self.dropped = values, dropped
        self.clients, self.width = values.shape

    def __call__(self) -> None:
        """All phases."""
        setup, range_ = SumSetup(self.clients, self.width), SumRange(self.clients, 8.0)
        self.client_s, self.up, self.down = 0.0, 0, 0
        began = time.process_time()
        kept = [{"words": range_.encode(row)[0]} for row in self.values]
        self.client_s += time.process_time() - began

        def ask(attempt: int, phase: str, requests: dict) -> dict:
            start, replies = time.process_time(), {}
            for place, request in requests.items():
                if phase == "mask" and place < self.dropped:
                    continue
                client = SumClient(replace(setup, attempt=attempt), place)
                replies[place], kept[place] = client.answer(phase, request, kept[place])
                if place == self.clients - 1:  # one that stays
                    self.up += sum(one.nbytes for one in replies[place].values())
                    self.down += sum(one.nbytes for one in request.values())
            self.client_s += time.process_time() - start
            return replies

        found = run_secure_sum(setup, ask)
        self.server_s = time.process_time() - began - self.client_s
        plain = self.values[self.dropped :].double().sum(dim=0)
        assert (range_.decode(found.total) - plain).abs().max() <= self.clients * range_.unit


def compare(clients: int, width: int, dropped: int, repeats: int) -> dict:
    values = torch.randn(clients, width, generator=torch.Generator().manual_seed(0))
    secure, taken = Sum(values, dropped), []
    for _ in range(repeats if clients * width <= _LARGE else 1):
        began, number = time.process_time(), 0
        while time.process_time() - began < 0.05:
            values.sum(dim=0)
            number += 1
        plain_s = (time.process_time() - began) / number
        secure()
        ratio = (secure.client_s + secure.server_s) / plain_s
        taken.append((secure.client_s / clients, secure.server_s, plain_s, ratio))
    own, server_s, plain_s, ratio = map(statistics.median, zip(*taken, strict=True))
    return {
        "clients": clients,
        "width": width,
        "dropped": dropped,
        "client_s": own,
        "server_s": server_s,
        "plain_s": plain_s,
        "ratio": ratio,
        "up_ratio": secure.up / (4 * width),
        "down_kb": secure.down / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    env = environment("phalanx", "torch", "cryptography") | {"threads": options.threads}
    rows = []
    for clients, width in SIZES:
        if options.quick and clients * width > 3_000_000:
            continue
        for dropped in (0, 2):
            if dropped and clients * width > 2 * _LARGE:  # minutes
                continue
            row = compare(clients, width, dropped, 1 if options.quick else _REPEATS)
            print("  ".join(f"{key}={cell(row[key])}" for key in COLUMNS), flush=True)
            rows.append(row)
            if not options.quick:  # after every row: the last ones take minutes on a busy machine
                write_measurement("secure_sum", CLAIM, env, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
