"""Training objective: the mean loss of a batch as a function of the flat parameters."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from phalanx.losses import Loss
from phalanx.parameters import ParameterLayout, make_dense

_SCALES = (65536.0, 4096.0, 256.0, 16.0, 1.0)  # of the loss in float16, largest first


class Objective:
    """Mean loss of a batch, and its gradients, as functions of the flat parameters.

    What a model writes to its buffers is thrown away after each call: gradients are a function of
    the parameters and the batch. Every layer stays in the mode in which it is: batch normalisation
    uses the statistics of the batch in training mode, and its running ones in evaluation mode, in
    which dropout does nothing. Embeddings have dense gradients. Random layers draw from torch's
    global generator, which whoever calls seeds.

    Args:
        model: architecture, frozen parameters and buffers; copied.
        loss: mean loss of a batch, from the model's output and the targets.
        device: where to compute; the model's own by default.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, device: torch.device | str | None = None
    ) -> None:
        self._model = copy.deepcopy(model).to(device)
        make_dense(self._model)
        for module in self._model.modules():
            if isinstance(module, _BatchNorm) and module.training:  # else vmap would refuse it
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
        self.loss = loss
        self.layout = ParameterLayout.of(self._model)
        named = dict(self._model.named_parameters())
        self._frozen = {name: value for name, value in named.items() if not value.requires_grad}
        self._buffers = dict(self._model.named_buffers())
        self.is_random = any(_is_random(module) for module in self._model.modules())
        self._half: torch.dtype | None = None

    def with_loss(self, loss: Loss) -> "Objective":
        """The same model under another loss."""
        other = copy.copy(self)
        other.loss = loss
        return other

    def in_mixed_precision(self, dtype: torch.dtype) -> "Objective":
        """The same model and loss under `torch.autocast` to a dtype; parameters stay as they are.

        In float16 the loss is scaled, so that small gradients do not vanish: by 65,536, and by less
        as long as the gradient is not finite. The scale is a function of parameters and samples, so
        that replicas still compute the same bits.
        """
        other = copy.copy(self)
        other._half = dtype
        return other

    @property
    def prefers_loops(self) -> bool:
        """Whether one by one is faster: convolutions and models of text on CPUs.

        Vmap turns convolutions into grouped ones, takes attention apart, and fills in embeddings.
        """
        on_cpu = all(value.device.type == "cpu" for value in self._model.parameters())
        slow = (_ConvNd, nn.Embedding, nn.EmbeddingBag)
        return on_cpu and any(isinstance(module, slow) for module in self._model.modules())

    def gradient(
        self, parameters: Float[Tensor, " dim"], inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, " dim"], Float[Tensor, ""]]:
        """The gradient of a batch by a plain backward pass, and its loss.

        The same kernels in every process and on every engine, so that runs agree to the bit.
        """
        # Not `torch.func.grad`: its first call loads the compiler, seconds in each process.
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in self.layout.unflatten(parameters).items()
        }

        def scaled(scale: float) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                loss = self._loss(leaves, inputs, targets, copy.deepcopy(self._buffers), scale)
                gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            dense = [one if one.layout == torch.strided else one.to_dense() for one in gradients]
            return torch.cat([one.reshape(-1) for one in dense]), loss.detach()

        return self._unscaled(scaled)

    def outputs(self, parameters: Float[Tensor, " dim"], inputs: Tensor) -> object:
        """What the model answers to a batch."""
        values = self.layout.unflatten(parameters)
        buffers = copy.deepcopy(self._buffers)
        with torch.no_grad():
            return functional_call(self._model, {**values, **self._frozen, **buffers}, (inputs,))

    def gradients(
        self, parameters: Float[Tensor, " dim"], inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, "batches dim"], Float[Tensor, " batches"]]:
        """The gradients of several batches of one size by one vectorised call, and their losses.

        Args:
            parameters: flat.
            inputs: `(batches, size, ...)`.
            targets: `(batches, size, ...)`.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        return self._vectorised(self._loss, parameters, inputs, targets)

    def client_gradients(
        self, parameters: Float[Tensor, "clients dim"], inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, "clients dim"], Float[Tensor, " clients"]]:
        """The gradients of several batches of one size, each at parameters of its own.

        Args:
            parameters: flat, one row for each batch.
            inputs: `(clients, size, ...)`.
            targets: `(clients, size, ...)`.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        return self._vectorised(self._loss, parameters, inputs, targets, own=True)

    def sample_gradients(
        self, parameters: Float[Tensor, " dim"], inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, "samples dim"], Float[Tensor, " samples"]]:
        """The gradient of every sample of a batch by one vectorised call, and their losses.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        return self._vectorised(self._loss_of_one, parameters, inputs, targets)

    def _vectorised(
        self,
        loss: Callable[..., Tensor],
        parameters: Tensor,
        inputs: Tensor,
        targets: Tensor,
        *,
        own: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if own:
            parts = zip(self.layout.shapes, parameters.split(self.layout.sizes, 1), strict=True)
            rows = [part.reshape(len(parameters), *shape) for shape, part in parts]
            values = dict(zip(self.layout.names, rows, strict=True))
        else:
            values = self.layout.unflatten(parameters)
        call = vmap(grad_and_value(loss), in_dims=(0 if own else None, 0, 0, None, None))

        def scaled(scale: float) -> tuple[Tensor, Tensor]:
            gradients, losses = call(values, inputs, targets, copy.deepcopy(self._buffers), scale)
            rows = [gradients[name].reshape(len(inputs), -1) for name in self.layout.names]
            return torch.cat(rows, dim=1), losses

        return self._unscaled(scaled)

    def _unscaled(self, scaled: Callable[[float], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Gradients and losses, by the largest scale of the loss that leaves them finite."""
        if self._half is not torch.float16:
            return scaled(1.0)
        for scale in _SCALES:
            gradients, losses = scaled(scale)
            if gradients.isfinite().all():
                break
        return gradients / scale, losses / scale

    def _loss(
        self,
        values: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        buffers: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        tensors = {**values, **self._frozen, **buffers}
        if self._half is None:
            return self.loss(functional_call(self._model, tensors, (inputs,)), targets)
        # No cache: under vmap it would keep tensors that are gone after the call.
        with torch.autocast(inputs.device.type, self._half, cache_enabled=False):
            loss = self.loss(functional_call(self._model, tensors, (inputs,)), targets)
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * scale

    def _loss_of_one(
        self,
        values: dict[str, Tensor],
        sample: Tensor,
        target: Tensor,
        buffers: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        return self._loss(values, sample.unsqueeze(0), target.unsqueeze(0), buffers, scale)


def _is_random(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in its mode: dropout, of its own or inside."""
    if not module.training:
        return False
    chance = getattr(module, "p", None) if isinstance(module, _DropoutNd) else None
    inner = getattr(module, "dropout", 0.0)
    return isinstance(module, nn.RReLU) or any(
        isinstance(value, float) and value > 0 for value in (chance, inner)
    )
