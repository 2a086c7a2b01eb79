"""What must fit together before a run starts."""

import inspect

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from phalanx.data import Partitioner
from phalanx.parameters import trained_parameters
from phalanx.training.decoding import Uncoded
from phalanx.training.job import Job


def check_job(
    job: Job,
    test: Dataset[tuple[Tensor, ...]] | None,
    counts: dict[str, int],
    shards: Partitioner | None,
) -> None:
    """Raises ValueError with everything that does not fit together, not only the first of it."""
    problems = []
    trained = trained_parameters(job.model)
    kinds = {f"{value.dtype} on {value.device}" for value in trained}
    if not trained:
        problems.append("model must have parameters that require gradients, got none")
    elif len(kinds) > 1:
        problems.append(
            f"model must have trained parameters of one dtype and device, got {sorted(kinds)}"
        )
    num_partitions, batch_size = job.code.num_partitions, job.batch_size
    if batch_size < 1 or batch_size % num_partitions:
        problems.append(
            f"batch_size must be a multiple of the {num_partitions} partitions, got {batch_size}"
        )
    if not hasattr(job.dataset, "__len__") or not hasattr(job.dataset, "__getitem__"):
        problems.append(
            "dataset must have a length and items by number, which "
            f"{type(job.dataset).__name__} has not"
        )
    elif shards is None and len(job.dataset) < batch_size:
        problems.append(
            f"dataset must fill one batch of {batch_size} samples, got {len(job.dataset)}"
        )
    if shards is not None and not isinstance(job.code, Uncoded):
        problems.append(
            "shards needs a rule instead of a code: a code has several workers compute the same "
            f"samples, which a worker with data of its own does not have, got {job.code}"
        )
    if job.worker_momentum is not None and job.code.at(1) is not job.code:
        problems.append(
            "worker_momentum needs workers that compute the same partitions in every round, for "
            f"replicas to agree, got {job.code}, which is drawn anew"
        )
    if trained and (problem := _compressor_problem(job)):
        problems.append(problem)
    if test is not None and len(test) == 0:  # type: ignore[arg-type]
        problems.append("test must have at least 1 sample, got 0")
    if job.schedule is not None and job.attack is None:
        problems.append("byzantine says who is bad, and needs attack to say what they do, got None")
    problems += [
        f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    job.byzantine(0)  # the schedule must fit the number of workers


def _compressor_problem(job: Job) -> str | None:
    """Why the compressor cannot go with the code, if so."""
    compressor, codec, code = job.compressor, job.codec, job.code
    if compressor is None or codec is None or code.compressible == "freely":
        return None
    if code.compressible == "never":
        return (
            f"compressor must be None under {type(code).__name__}, which takes for a lie what "
            f"compression leaves out of an honest message, got {compressor}"
        )
    if compressor.random and not compressor.needs_shared_randomness:
        why = "draws other numbers on every worker"
    elif codec.remembers:
        why = "remembers rounds that a replica may have missed"
    else:
        return None
    return (
        f"compressor must send the same for equal messages under {type(code).__name__}, which "
        f"compares replicas, got {compressor}, which {why}"
    )


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises ValueError if its steps need the loss to be computed again."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer must take one gradient a step, and {type(optimizer).__name__} asks for more"
        )
