"""Compatibility checks of the stages of a round, made before a run starts."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from phalanx.aggregation import Mean
from phalanx.coding import Uncoded
from phalanx.computations import Objective
from phalanx.fetch import fetch, sample_problems
from phalanx.losses import classes_second, cross_entropy, targets_problem
from phalanx.parameters import trained_parameters, unfit_parameters
from phalanx.randomness import seeded
from phalanx.training.job import Job
from phalanx.training.round import Round


def check_job(
    job: Job, sets: Mapping[str, Dataset[tuple[Tensor, ...]]], counts: dict[str, int]
) -> None:
    """Raises ValueError with everything that does not fit together, not only the first of it.

    If nothing is wrong by itself, model and loss are tried on the first samples.
    """
    round_, trained = job.round, trained_parameters(job.model)
    problems = [f"model: {one}" for one in unfit_parameters(dict(job.model.named_parameters()))]
    has_layout = bool(trained) and not problems
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
    if unfit := sample_problems(job.dataset, "dataset"):
        problems += unfit
    elif round_.order.shared and (size := _length(job.dataset)) < batch_size:
        problems.append(f"dataset must fill one batch of {batch_size} samples, got {size}")
    alone = isinstance(code, Uncoded)
    if not round_.order.shared and not alone:
        problems.append(
            f"order {type(round_.order).__name__} needs a rule instead of a code: a code has "
            "several workers compute the same samples, which a worker with data of its own does "
            f"not have, got {code}"
        )
    if has_layout and not alone and round_.compute.init(job.layout):
        problems.append(
            f"compute {round_.compute} remembers rounds, which replicas may have missed: it needs "
            f"a rule instead of a code, got {code}"
        )
    problems += _stage_problems(round_)
    problems += hidden_problems(round_)
    if has_layout:
        problems += job.chain.problems(code)
    for name, data in sets.items():
        unfit = sample_problems(data, name)
        if not unfit and _length(data) == 0:
            unfit = [f"{name} must have at least 1 sample, got 0"]
        problems += unfit
    if round_.byzantine is not None and round_.attack is None:
        problems.append(
            "byzantine says who is Byzantine, and needs attack to say what they do, got None"
        )
    problems += [
        f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    _check_attack(job)
    if not job.model.training:
        warnings.warn(
            "model is in evaluation mode, and is trained so: dropout does nothing, and batch "
            "normalisation keeps its statistics; call model.train() before, unless it is meant",
            stacklevel=3,
        )
    if unfit := _trial_problems(job, sets):
        raise ValueError("; ".join(unfit))


def hidden_problems(stages: Round) -> list[str]:
    """Which stages ask for single messages, where a protocol hides them."""
    if stages.aggregation is None:
        return []
    by, code, problems = type(stages.aggregation).__name__, stages.code, []
    if not isinstance(code, Uncoded) or not isinstance(code.rule, Mean):
        problems.append(
            f"rule must be Mean() under {by}, which hides single updates, got {code.method}; two "
            "servers compute rules on distances: rule=phalanx.privacy.SecureAggregation(rule)"
        )
    if any(one.encodes for one in stages.transforms):
        problems.append(
            f"transforms must keep messages as numbers under {by}, got {stages.transforms}"
        )
    if stages.attack is not None and stages.attack.omniscient:
        problems.append(f"attack must not read messages, which {by} hides, got {stages.attack}")
    if stages.step.needs_messages:
        problems.append(
            f"step must take the mean alone under {by}, which hides single updates, got "
            f"{type(stages.step).__name__}"
        )
    return problems


def _check_attack(job: Job) -> None:
    """Raises ValueError if schedule or attack do not fit the workers."""
    job.conduct(0)  # the schedule must fit their number
    attack, schedule = job.round.attack, job.round.byzantine
    if attack is not None and schedule is not None:
        lying = schedule.permanent(job.round.code.num_workers, job.seed)
        if unfit := attack.problem((~lying).nonzero().flatten().tolist()):
            raise ValueError(f"attack: {unfit}")


def _stage_problems(stages: Round) -> list[str]:
    """What the computation, the server step and the order have against one another."""
    compute, step, problems = stages.compute, stages.step, []
    if compute.num_vectors != step.num_vectors:
        problems.append(
            f"step must take updates of {compute.num_vectors} vectors, which compute "
            f"{type(compute).__name__} gives, got {type(step).__name__}, which takes "
            f"{step.num_vectors}"
        )
    other = None if stages.attack is None else stages.attack.computation
    if other is not None and other.num_vectors != compute.num_vectors:
        problems.append(
            f"attack must compute updates of {compute.num_vectors} vectors, as "
            f"{type(compute).__name__} does, got {stages.attack}, which computes "
            f"{other.num_vectors}"
        )
    if stages.preparation is not None and not isinstance(stages.code, Uncoded):
        problems.append(f"preparation needs a rule instead of a code, got {stages.code}")
    if stages.preparation is not None and stages.transforms:
        problems.append(
            f"transforms must be none where workers send {type(stages.preparation).__name__} "
            f"first, which goes as it is, got {list(stages.transforms)}"
        )
    if stages.order.moves and stages.attack is not None and stages.attack.rounds_behind:
        problems.append(
            "attack must not be rounds behind where clients are sampled anew every round, got "
            f"{stages.attack}"
        )
    return problems


def _trial_problems(job: Job, sets: Mapping[str, Dataset[tuple[Tensor, ...]]]) -> list[str]:
    """What goes wrong when a partition's gradient is computed, and which targets are no classes."""
    parameters = job.layout.read(job.model)
    size = min(job.batch_size // job.round.code.num_partitions, _length(job.dataset))
    if not size:  # clients share out what there is, and say that it is nothing
        return []
    with seeded(job.seed, "trial"):
        samples = [part.to(parameters.device) for part in fetch(job.dataset, torch.arange(size))]
        objective = Objective(job.model, job.loss)
        try:
            scores = objective.outputs(parameters, samples[0])
            if problems := _class_problems(job, sets, scores):
                return problems
            objective.gradient(parameters, *samples)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # model and loss are the user's
            raise ValueError(
                "model, loss and dataset must fit together, which they do not for "
                f"{_told(samples[0], 'inputs')} and {_told(samples[1], 'targets')}, with "
                f"parameters of {parameters.dtype}: {type(error).__name__}: {error}"
            ) from error
    return []


def _class_problems(
    job: Job, sets: Mapping[str, Dataset[tuple[Tensor, ...]]], scores: object
) -> list[str]:
    """Which targets are no classes, where all of them are at hand."""
    own = any(job.loss is one for one in (cross_entropy, nn.functional.cross_entropy))
    if not (own or isinstance(job.loss, nn.CrossEntropyLoss)) or not isinstance(scores, Tensor):
        return []
    ignored = getattr(job.loss, "ignore_index", -100)
    problems = []
    for name, dataset in {"dataset": job.dataset, **sets}.items():
        if type(dataset) is TensorDataset and (
            found := targets_problem(classes_second(scores), dataset.tensors[1], ignored)
        ):
            problems.append(f"{name}: {found}")
    return problems


def _length(dataset: Dataset[tuple[Tensor, ...]]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _told(values: Tensor, name: str) -> str:
    return f"{name} of {values.dtype} and shape {tuple(values.shape)}"
