"""Gradients of the partitions of a round: many at once, or one by one, with the same result."""

import copy
import warnings
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, replace_all_batch_norm_modules_, vmap
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import TensorDataset

from phalanx.fetch import fetch
from phalanx.ordering.random_reshuffling import partition_samples
from phalanx.randomness import seeded
from phalanx.training.job import Job

_BLOCK_BYTES = 2**28  # gradients held beside the messages, if the chunk size is left to us


class PartitionGradients:
    """Computes gradients of partitions, flattened to rows, from a flat vector of parameters.

    With `chunk_size` above one, gradients of several partitions are computed by one vectorised call
    (`torch.func.vmap`); with one, by a plain backward pass each: the same kernels in every process
    and on every engine, so that runs agree to the bit. Models with random layers (dropout), and
    those that `vmap` cannot take (whose control flow depends on the data, say), are always computed
    one by one.

    Random layers, and data sets that draw from torch's generator when asked for a sample, are
    seeded by partition, so that replicas draw the same numbers. Batch normalisation uses the
    statistics of the partition. What else a model writes to its buffers is thrown away after each
    gradient: gradients are a function of the parameters, not of which partitions a process computed
    before.
    """

    def __init__(
        self, job: Job, chunk_size: int | None = None, device: torch.device | str | None = None
    ) -> None:
        self.job = job
        self._model = replace_all_batch_norm_modules_(copy.deepcopy(job.model)).train().to(device)
        named = dict(self._model.named_parameters())
        self._names = [name for name, value in named.items() if value.requires_grad]
        self._shapes = [named[name].shape for name in self._names]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._frozen = {name: value for name, value in named.items() if not value.requires_grad}
        self._buffers = dict(self._model.named_buffers())
        self.dim = sum(self._sizes)
        self._random = any(_is_random(module) for module in self._model.modules())
        if self._random or (chunk_size is None and self._prefers_loops()):
            chunk_size = 1
        elif chunk_size is None:
            row_bytes = sum(named[name].nbytes for name in self._names)
            chunk_size = max(1, _BLOCK_BYTES // max(row_bytes, 1))
        self.chunk_size = chunk_size
        self._vectorises = False  # not known before it has been tried
        self._many = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0, None))

    def blocks(
        self, step: int, partitions: Sequence[int], parameters: Float[Tensor, " dim"]
    ) -> Iterator[tuple[Float[Tensor, "block dim"], Float[Tensor, " block"]]]:
        """Gradients and losses of the partitions, in order, `chunk_size` at a time."""
        sizes = parameters.split(self._sizes)
        values = {
            name: part.view(shape)
            for name, part, shape in zip(self._names, sizes, self._shapes, strict=True)
        }
        for start in range(0, len(partitions), self.chunk_size):
            chunk = partitions[start : start + self.chunk_size]
            inputs, targets = self._batch(step, chunk, parameters.device)
            inputs, targets = (one.unflatten(0, (len(chunk), -1)) for one in (inputs, targets))
            together = self._together(values, inputs, targets) if len(chunk) > 1 else None
            if together is not None:
                yield together
                continue
            for partition, *batch in zip(chunk, inputs, targets, strict=True):
                with seeded(self.job.seed, "layers", step, partition):
                    gradients, loss = self._backward(values, *batch)
                yield self._flatten(gradients, 1), loss.reshape(1)

    def _prefers_loops(self) -> bool:
        """Whether one by one is faster: convolutions and models of text on CPUs.

        Vmap turns convolutions into grouped ones, takes attention apart, and fills in embeddings.
        """
        on_cpu = all(value.device.type == "cpu" for value in self._model.parameters())
        slow = (_ConvNd, nn.Embedding)
        return on_cpu and any(isinstance(module, slow) for module in self._model.modules())

    def _together(
        self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Gradients and losses by one call; None if the model turns out to be unfit for it."""
        try:
            gradients, losses = self._many(values, inputs, targets, copy.deepcopy(self._buffers))
        except RuntimeError as error:
            if self._vectorises or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.chunk_size = 1
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(
                "the model's gradients are computed one by one, which is slower, because vmap "
                f"cannot take it: {reason} (chunk_size=1 asks for it, without this warning)",
                stacklevel=2,
            )
            return None
        self._vectorises = True
        return self._flatten(gradients, len(inputs)), losses

    def _backward(
        self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        # Not `torch.func.grad`: its first call loads the compiler, seconds in each process.
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            loss = self._loss(leaves, inputs, targets, copy.deepcopy(self._buffers))
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True)), loss.detach()

    def _batch(
        self, step: int, partitions: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The samples of the partitions, one partition after the other, asked for at once."""
        job = self.job
        samples = [self._samples(step, partition) for partition in partitions]
        if type(job.dataset) is TensorDataset:
            inputs, targets = fetch(job.dataset, torch.cat(samples))
        else:
            batches = []
            for partition, own in zip(partitions, samples, strict=True):
                with seeded(job.seed, "samples", step, partition):  # it may crop or flip at random
                    batches.append(fetch(job.dataset, own))
            inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return inputs.to(device), targets.to(device)

    def _samples(self, step: int, partition: int) -> Tensor:
        job = self.job
        number = job.code.num_partitions
        if job.shards is not None:
            return job.shards.batch(step, partition, job.batch_size // number, job.seed)
        size = len(job.dataset)  # type: ignore[arg-type]
        return partition_samples(size, job.batch_size, number, job.seed, step, partition)

    def _loss(
        self,
        values: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        buffers: dict[str, Tensor],
    ) -> Tensor:
        outputs = functional_call(self._model, {**values, **self._frozen, **buffers}, (inputs,))
        return self.job.loss(outputs, targets)

    def _flatten(self, gradients: dict[str, Tensor], count: int) -> Tensor:
        return torch.cat([gradients[name].reshape(count, -1) for name in self._names], dim=1)


def _is_random(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in training: dropout, of its own or inside."""
    chance = getattr(module, "p", None) if isinstance(module, _DropoutNd) else None
    inner = getattr(module, "dropout", 0.0)
    return isinstance(module, nn.RReLU) or any(
        isinstance(value, float) and value > 0 for value in (chance, inner)
    )
