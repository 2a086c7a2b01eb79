"""`phalanx emulate-links`: a command on ranks that are joined by slow links of this machine."""

from phalanx.cli.console import complaints
from phalanx.communication import EmulatedLinks
from phalanx.errors import RankLostError


def emulate_links(
    program: list[str],
    num_ranks: int = 2,
    bandwidth: str | None = "100mbit",
    latency: str = "0s",
    jitter: str = "0s",
    loss: float = 0.0,
) -> None:
    """Runs a command once per rank, on slow links that are emulated on this machine.

    Example: phalanx emulate-links --num_ranks 4 --bandwidth 100mbit --latency 20ms -- torchrun
    train.py --epochs 1

    Every rank has a network namespace of its own (Linux, root, iproute2). torchrun starts one
    process there; a plain command finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Processes
    have to use the network: gloo does, by `eth0`. All is removed at the end.

    Args:
        program: The command and its arguments, after two dashes.
        num_ranks: How often the command runs, each time on a link of its own.
        bandwidth: Of each rank's link, each way, such as 100mbit or 2.5gbit; null for no limit.
        latency: From one rank to another, one way, such as 20ms.
        jitter: The latency is longer by as much as this, drawn for each packet.
        loss: Probability of a packet to be lost, and sent again by TCP.
    """
    links = EmulatedLinks(num_ranks, bandwidth, latency=latency, jitter=jitter, loss=loss)
    with links:
        before = [links.counters(rank) for rank in range(num_ranks)]
        codes = links.stream(program)
        after = [links.counters(rank) for rank in range(num_ranks)]
    failed = [rank for rank, code in enumerate(codes) if code]
    if failed:
        first = failed[0]
        raise RankLostError(f"rank {first} ended with exit code {codes[first]}", ranks=failed)
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        sent, received = (new.sent - old.sent) / 1e6, (new.received - old.received) / 1e6
        complaints.print(f"rank {rank} sent {sent:.3f} MB and received {received:.3f} MB")
