"""Compatibility checks of the stages of a round, made before a run starts."""

from collections.abc import Mapping

from torch import Tensor
from torch.utils.data import Dataset

from phalanx.coding import Uncoded
from phalanx.parameters import trained_parameters
from phalanx.training.job import Job


def check_job(
    job: Job, sets: Mapping[str, Dataset[tuple[Tensor, ...]]], counts: dict[str, int]
) -> None:
    """Raises ValueError with everything that does not fit together, not only the first of it."""
    round_, trained = job.round, trained_parameters(job.model)
    problems = []
    kinds = {f"{value.dtype} on {value.device}" for value in trained}
    if not trained:
        problems.append("model must have parameters that require gradients, got none")
    elif len(kinds) > 1:
        problems.append(
            f"model must have trained parameters of one dtype and device, got {sorted(kinds)}"
        )
    code, batch_size = round_.code, job.batch_size
    if batch_size < 1 or batch_size % code.num_partitions:
        problems.append(
            f"batch_size must be a multiple of the {code.num_partitions} partitions, got "
            f"{batch_size}"
        )
    if not hasattr(job.dataset, "__len__") or not hasattr(job.dataset, "__getitem__"):
        problems.append(
            "dataset must have a length and items by number, which "
            f"{type(job.dataset).__name__} has not"
        )
    elif round_.order.shared and len(job.dataset) < batch_size:
        problems.append(
            f"dataset must fill one batch of {batch_size} samples, got {len(job.dataset)}"
        )
    alone = isinstance(code, Uncoded)
    if not round_.order.shared and not alone:
        problems.append(
            f"order {type(round_.order).__name__} needs a rule instead of a code: a code has "
            "several workers compute the same samples, which a worker with data of its own does "
            f"not have, got {code}"
        )
    if not alone and round_.compute.init(job.layout):
        problems.append(
            f"compute {round_.compute} remembers rounds, which replicas may have missed: it needs "
            f"a rule instead of a code, got {code}"
        )
    if trained:
        problems += job.chain.problems(code)
    problems += [
        f"{name} must have at least 1 sample, got 0"
        for name, data in sets.items()
        if len(data) == 0  # type: ignore[arg-type]
    ]
    if round_.byzantine is not None and round_.attack is None:
        problems.append(
            "byzantine says who is Byzantine, and needs attack to say what they do, got None"
        )
    problems += [
        f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    job.conduct(0)  # the schedule must fit the number of workers
