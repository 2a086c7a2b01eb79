"""Secure sums by pairwise masks against the plain sum of the same vectors: time and bytes.

    python benchmarks/bench_secure_sum.py [--quick] [--threads 1]

All parties run in one process, one after the other; clients and server are timed apart.
"""

import argparse
import time
from dataclasses import replace

import torch

from measurement import cell, write_measurement
from phalanx.privacy import SumClient, SumRange, SumSetup, run_secure_sum
from side_by_side import environment, side_by_side

CLAIM = "Secure sums by pairwise masks, against the plain sum"
SIZES = [(clients, width) for width in (10_000, 100_000, 1_000_000) for clients in (10, 30, 100)]
_LARGE = 20_000_000  # numbers of all clients, of which there is one sum only
_MANY = 100  # clients, of whom it is as well
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
    "its masked vector. A client works in four phases, of which all are counted; the plain sum is "
    "that of the float32 vectors. Bytes are those of one client; up against its vector in float32, "
    "down without the model."
)


class Sum:
    """One secure sum with its seconds and bytes."""

    def __init__(self, values: torch.Tensor, dropped: int) -> None:
        self.values, self.dropped = values, dropped
        self.clients, self.width = values.shape

    def __call__(self) -> None:
        """All phases."""
        setup, range_ = SumSetup(self.clients, self.width), SumRange(self.clients, 8.0)
        self.client_s, self.up, self.down = 0.0, 0, 0
        began = time.perf_counter()
        kept = [{"words": range_.encode(row)[0]} for row in self.values]
        self.client_s += time.perf_counter() - began

        def ask(attempt: int, phase: str, requests: dict) -> dict:
            start, replies = time.perf_counter(), {}
            for place, request in requests.items():
                if phase == "mask" and place < self.dropped:
                    continue
                client = SumClient(replace(setup, attempt=attempt), place)
                replies[place], kept[place] = client.answer(phase, request, kept[place])
                if place == self.clients - 1:  # one that stays
                    self.up += sum(one.nbytes for one in replies[place].values())
                    self.down += sum(one.nbytes for one in request.values())
            self.client_s += time.perf_counter() - start
            return replies

        found = run_secure_sum(setup, ask)
        self.server_s = time.perf_counter() - began - self.client_s
        plain = self.values[self.dropped :].double().sum(dim=0)
        assert (range_.decode(found.total) - plain).abs().max() <= self.clients * range_.unit


def compare(clients: int, width: int, dropped: int, rounds: int) -> dict:
    values = torch.randn(clients, width, generator=torch.Generator().manual_seed(0))
    secure = Sum(values, dropped)
    taken: list[tuple[float, float]] = []

    def run() -> None:
        secure()
        taken.append((secure.client_s / clients, secure.server_s))

    contestants = {
        "plain": lambda: values.sum(dim=0),
        "secure": run,
    }
    warm_up = 1 if clients * width < _LARGE and clients < _MANY else 0
    rounds = rounds if warm_up else 1
    timings = side_by_side(contestants, "plain", rounds, warm_up)
    own = [sorted(one[side] for one in taken[warm_up:])[rounds // 2] for side in range(2)]
    return {
        "clients": clients,
        "width": width,
        "dropped": dropped,
        "client_s": own[0],
        "server_s": own[1],
        "plain_s": timings["plain"].median_s,
        "ratio": timings["secure"].ratio,
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
            if dropped and clients * width > 2 * _LARGE:
                continue
            row = compare(clients, width, dropped, 1 if options.quick else 3)
            print("  ".join(f"{key}={cell(row[key])}" for key in COLUMNS), flush=True)
            rows.append(row)
            if not options.quick:  # after every row: the last ones take minutes on a busy machine
                write_measurement("secure_sum", CLAIM, env, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
