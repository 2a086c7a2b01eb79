"""Real processes with a gloo group, started once and given one case after the other."""

import datetime
import multiprocessing
import os
import pickle
from pathlib import Path

from jaxtyping import install_import_hook

with install_import_hook("phalanx", "beartype.beartype"):  # annotations are checked there too
    import phalanx.ddp

import torch
import torch.distributed as dist

TESTS = str(Path(__file__).resolve().parents[1])


class Ranks:
    """`num_ranks` processes; a context manager that ends them."""

    def __init__(self, num_ranks, folder, timeout_s=60.0):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ddp.ranks"])
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, before]))
        pipes = [context.Pipe() for _ in range(num_ranks)]
        self.processes = [
            context.Process(
                target=serve, args=(rank, num_ranks, str(folder), timeout_s, end), daemon=True
            )
            for rank, (_, end) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        os.environ["PYTHONPATH"] = before
        self.ends = [ours for ours, _ in pipes]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.join()

    def start(self, case, *arguments, **options):
        for end in self.ends:
            end.send_bytes(pickle.dumps((case, arguments, options)))

    def answer(self, rank, timeout_s=60.0):
        """What the case gave on a rank; the error itself, if it failed."""
        assert self.ends[rank].poll(timeout_s), f"rank {rank} does not answer"
        return pickle.loads(self.ends[rank].recv_bytes())

    def outcomes(self, case, *arguments, **options):
        """What the case gave on every rank, errors included."""
        self.start(case, *arguments, **options)
        return [self.answer(rank) for rank in range(len(self.ends))]

    def __call__(self, case, *arguments, **options):
        """What the case gave on every rank."""
        found = self.outcomes(case, *arguments, **options)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found


def serve(rank, num_ranks, folder, timeout_s, end):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=num_ranks,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    while True:
        case, arguments, options = pickle.loads(end.recv_bytes())
        try:
            answer = case(*arguments, **options)
        except Exception as error:
            answer = error
        end.send_bytes(pickle.dumps(answer))


__all__ = ["Ranks", "phalanx", "serve"]
