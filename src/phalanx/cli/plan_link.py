"""`phalanx plan --link`: a table of compressors on a link, and the advice."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from phalanx.communication import Link
from phalanx.planning import CompressorOutlook

HEADERS = (
    "compressor",
    "collective",
    "payload",
    "on the wire",
    "overhead",
    "s/step",
    "pays below",
)
_HARDLY = 1.05  # times as fast: within what such predictions can tell apart


def table(outlooks: Sequence[CompressorOutlook]) -> Table:
    """One line a compressor, the quickest first."""
    found = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    found.add_column(HEADERS[0], style="bold", overflow="fold", min_width=20)
    found.add_column(HEADERS[1].replace(" ", "\n"), overflow="fold", min_width=10)
    for header in HEADERS[2:]:
        found.add_column(header.replace(" ", "\n"), justify="right", no_wrap=True)
    for one in outlooks:
        found.add_row(*cells(one))
    return found


def cells(one: CompressorOutlook) -> tuple[str, ...]:
    """What the table says of a compressor, under `HEADERS`."""
    # Imported where it is used: the room's matplotlib would make every command wait.
    from phalanx.reporting.format import duration, size

    return (
        one.compressor,
        one.collective,
        size(one.payload_bytes),
        size(one.wire_bytes),
        duration(one.overhead_s),
        duration(one.step_s),
        "\u2014" if one.compressor == "none" else rate(one.break_even),
    )


def rate(bits: float) -> str:
    """A bandwidth, or in words where it has no bounds.

    >>> rate(1.6e8), rate(0.0), rate(math.inf)
    ('160 Mbit/s', 'never', 'always')
    """
    if bits == 0:
        return "never"
    if bits == math.inf:
        return "always"
    for unit, scale in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= scale:
            return f"{bits / scale:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def about(outlooks: Sequence[CompressorOutlook], link: Link, num_workers: int) -> str:
    """What was planned for, in a sentence."""
    # Imported where it is used: see `cells`.
    from phalanx.reporting.format import duration, size

    dense = next(one for one in outlooks if one.compressor == "none")
    return (
        f"Gradients of {size(dense.payload_bytes)} among {num_workers} workers, on links of "
        f"{rate(link.rate)} and {duration(link.latency_s)}."
    )


def answer(outlooks: Sequence[CompressorOutlook], link: Link, num_workers: int) -> str:
    """The recommendation in a sentence or two."""
    # Imported where it is used: see `cells`.
    from phalanx.reporting.format import duration

    best = outlooks[0]
    dense = next(one for one in outlooks if one.compressor == "none")
    if best is dense:
        lines = ["Do not compress: on this link nothing beats the dense all-reduce."]
        paying = [one for one in outlooks if one.break_even > 0]
        if paying:
            next_best = max(paying, key=lambda one: one.break_even)
            lines.append(
                f"{next_best.compressor} pays on links below {rate(next_best.break_even)}."
            )
    else:
        faster = dense.step_s / best.step_s
        lines = [f"Take {best.compressor}: a step {faster:.3g} times as fast as the dense one."]
        if faster < _HARDLY:
            lines = [
                f"Compression hardly pays here: {best.compressor} is {faster:.3g} times as fast."
            ]
    waiting_s = link.seconds(0, best.num_hops)
    if waiting_s > best.step_s / 2:
        lines.append(
            f"Latency takes {duration(waiting_s)} of its {duration(best.step_s)} per step: "
            "no compressor changes that."
        )
    crowded = [
        one.compressor
        for one in outlooks
        if one.max_workers is not None and one.max_workers <= num_workers
    ]
    if crowded:
        lines.append(
            f"Gathered messages grow with the workers: with {num_workers} of them these send "
            f"more than the dense all-reduce: {', '.join(crowded)}."
        )
    lines.append("What compression costs in accuracy is not in here: compare short runs.")
    return " ".join(lines)
