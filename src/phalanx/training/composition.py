"""Composition of a run: what its weights follow from, and what may differ when it resumes."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.data import Dataset, TensorDataset

from phalanx.coding import Uncoded
from phalanx.identity import by_content, description, digest, tensors_digest
from phalanx.randomness import seeded
from phalanx.training.job import Job

BY_INTENT = ("lr", "attack", "byzantine")
"""What may differ in a run that resumes if one says so: see `changes` of `phalanx.train`."""

_RATES = ("lr", "initial_lr", "base_lrs")
_LARGE = 2**28  # bytes of data that are read whole for a checksum
_READ = 16  # samples that are read of other data, evenly spaced

Composition = Mapping[str, Any]
"""What a run is made of, as values that JSON holds: kept in every checkpoint, and in `run.json`."""


def composition(job: Job, step_state: Any, **options: Any) -> Composition:
    """What the weights of a run follow from, besides the number of its rounds.

    Classes are told by name and fields, functions without a name by their code, the optimizer by
    its settings, the model by its modules, parameters and what of it is not trained, the data by
    length, shapes and a checksum (of evenly spaced samples, where they are many).

    Args:
        job: stages, model, loss, data, batch size and seed.
        step_state: of the server step before the first round.
        options: what else counts, by name.
    """
    stages, code = job.round, job.round.code
    if isinstance(code, Uncoded):
        decoder = {"rule": code.rule, "num_workers": code.num_workers}
    else:
        decoder = {"code": code}
    found = {
        **decoder,
        "order": stages.order,
        "compute": stages.compute,
        "transforms": stages.transforms,
        "attack": stages.attack,
        "byzantine": stages.byzantine,
        **({"preparation": stages.preparation} if stages.preparation is not None else {}),
        **({"weighted": True} if stages.weighted else {}),
        **({"aggregation": stages.aggregation} if stages.aggregation is not None else {}),
        "loss": job.loss,
        "batch_size": job.batch_size,
        "seed": job.seed,
        **options,
    }
    told = {
        **description(found, by_content),
        "step": _step(description(stages.step, by_content), step_state),
        "model": _model(job.model),
        "dataset": _data(job.dataset, job.seed),
    }
    plain: Composition = json.loads(json.dumps(told))
    return plain


def composition_of(
    models: Mapping[str, nn.Module],
    datasets: Mapping[str, Dataset[tuple[Tensor, ...]]],
    seed: int,
    **options: Any,
) -> Composition:
    """The same for a run that is no training loop.

    Args:
        models: by name.
        datasets: by name.
        seed: of the run.
        options: what else counts, by name.
    """
    told = {
        **description({"seed": seed, **options}, by_content),
        **{name: _model(one) for name, one in models.items()},
        **{name: _data(one, seed) for name, one in datasets.items()},
    }
    plain: Composition = json.loads(json.dumps(told))
    return plain


class Difference(NamedTuple):
    """Difference of two compositions.

    Attributes:
        name: of the argument.
        where: the path to what differs, the argument's name first.
        before: what the run was begun with.
        now: what is given now.
    """

    name: str
    where: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.where} was {_short(self.before)} and is now {_short(self.now)}"


def differences(before: Composition, now: Composition) -> list[Difference]:
    """What differs, by argument; a learning rate is named `lr`, wherever it is."""
    found = []
    for where, one, other in _differing(before, now, ()):
        rate = where[0] == "step" and where[-1] in _RATES
        found.append(Difference("lr" if rate else where[0], ".".join(where), one, other))
    return found


def require_same(before: Composition, now: Composition, changes: Collection[str] = ()) -> None:
    """Refuses to resume a run that is made of something else.

    Args:
        before: of the run.
        now: of what is to go on with it.
        changes: names of what is meant to differ, see `BY_INTENT`.

    Raises:
        ValueError: with the name, the value before and the value now of everything else that
            differs.
    """
    found = [one for one in differences(before, now) if one.name not in changes]
    if found:
        meant = sorted({one.name for one in found if one.name in BY_INTENT})
        hint = f" (if that is meant, give changes {meant})" if meant else ""
        raise ValueError(
            "resume needs the arguments that the run was begun with: "
            + "; ".join(map(str, found))
            + hint
        )


def with_rates(dumped: Any, other: Any) -> Any:
    """What a server step dumped, with the learning rates that another dump of it has."""
    if isinstance(dumped, dict) and isinstance(other, dict):
        return {
            key: other[key] if key in _RATES and key in other else with_rates(one, other.get(key))
            for key, one in dumped.items()
        }
    if isinstance(dumped, list) and isinstance(other, list) and len(dumped) == len(other):
        return [with_rates(*parts) for parts in zip(dumped, other, strict=True)]
    return dumped


def _step(told: Any, state: Any) -> Any:
    """The server step; an optimizer by what it is, whatever has made it."""
    if not isinstance(told, dict):
        return told
    found = {key: _step(one, None) for key, one in told.items() if key != "optimizer"}
    if optimizers := list(_optimizers(state)):
        found["optimizer"] = [
            {"class": type(one).__qualname__, "groups": [_group(group) for group in groups]}
            for one in optimizers
            if (groups := one.param_groups)
        ]
    return found


def _optimizers(state: Any) -> Iterator[Optimizer]:
    """The optimizers in the state of a server step."""
    if isinstance(state, Optimizer):
        yield state
    elif isinstance(state, tuple | list):
        for one in state:
            yield from _optimizers(one)
    elif is_dataclass(state):
        yield from _optimizers([getattr(state, one.name) for one in fields(state)])


def _group(group: Mapping[str, Any]) -> Any:
    """The settings of a group of parameters, and how many they are."""
    settings = {key: one for key, one in group.items() if key not in ("params", "param_names")}
    return {"class": "group", **description(settings, by_content), "size": len(group["params"])}


def _differing(
    one: Any, other: Any, where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Paths to what differs, as deep as both sides are alike."""
    if isinstance(one, dict) and isinstance(other, dict):
        # A field that only one side knows of came with another version of its class.
        same_class = "class" in one and one.get("class") == other.get("class")
        keys = [key for key in one if key in other] if same_class else list({**one, **other})
        if not same_class and "class" in one and "class" in other:
            yield where, one, other
            return
        for key in keys:
            yield from _differing(one.get(key), other.get(key), (*where, key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, parts in enumerate(zip(one, other, strict=True)):
            yield from _differing(*parts, (*where, str(place)))
    elif one != other:
        yield where, one, other


def _short(value: Any) -> str:
    """A value in a line: a class with what is in it."""
    if isinstance(value, dict) and "class" in value:
        inner = ", ".join(f"{key}={_short(one)}" for key, one in value.items() if key != "class")
        text = f"{str(value['class']).rpartition('.')[2]}({inner})"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def _model(model: nn.Module) -> dict[str, Any]:
    """Modules, trained parameters, and a digest of all else but the statistics of batches."""
    statistics = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fixed = [state[name] for name in sorted(state) if name not in trained | statistics]
    parameters = dict(model.named_parameters())
    return {
        "modules": {name: _module(one) for name, one in model.named_modules()},
        "parameters": {
            name: f"{str(parameters[name].dtype).removeprefix('torch.')} "
            f"{list(parameters[name].shape)}"
            for name in parameters
            if name in trained
        },
        "fixed": tensors_digest(fixed) if fixed else None,
    }


def _module(module: nn.Module) -> str:
    """A module's class and settings, and whether it is frozen in evaluation."""
    settings = "" if " at 0x" in (told := module.extra_repr()) else told
    return f"{type(module).__qualname__}({settings})" + ("" if module.training else ", evaluating")


def _data(dataset: Dataset[tuple[Tensor, ...]], seed: int) -> dict[str, Any]:
    """Length, shapes and a checksum: of all, or of samples if they are many or no tensors."""
    size = len(dataset)  # type: ignore[arg-type]
    found: dict[str, Any] = {"kind": type(dataset).__qualname__, "length": size}
    places = [size * number // _READ for number in range(_READ)] if size > _READ else range(size)
    if type(dataset) is TensorDataset:
        tensors = dataset.tensors
        if sum(one.nbytes for one in tensors) > _LARGE:
            tensors = tuple(one[list(places)] for one in tensors)
        shapes = [list(one.shape[1:]) for one in tensors]
        return {**found, "shapes": shapes, "checksum": tensors_digest(tensors)}
    checksums = {_samples(dataset, places, seed) for _ in range(2)}
    # Data that draw from elsewhere than torch differ from reading to reading.
    return {**found, "checksum": checksums.pop() if len(checksums) == 1 else None}


def _samples(dataset: Any, places: Collection[int], seed: int) -> str | None:
    """A digest of samples; None if one of them cannot be read, which is for its round to say."""
    with seeded(seed, "checksum"):  # they may be cropped or flipped at random
        try:
            return digest([description(dataset[place], by_content) for place in places])
        except Exception:  # anything at all, from code that is not ours
            return None
