"""Training objective: the mean loss of a batch as a function of the flat parameters."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from phalanx.losses import Loss
from phalanx.parameters import ParameterLayout, make_dense


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
        self._many = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0, None))
        self._split = vmap(grad_and_value(self._loss_of_one), in_dims=(None, 0, 0, None))

    def with_loss(self, loss: Loss) -> "Objective":
        """The same model under another loss."""
        return Objective(self._model, loss)

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
        with torch.enable_grad():
            loss = self._loss(leaves, inputs, targets, copy.deepcopy(self._buffers))
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        dense = [one if one.layout == torch.strided else one.to_dense() for one in gradients]
        return torch.cat([one.reshape(-1) for one in dense]), loss.detach()

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
        return self._vectorised(self._many, parameters, inputs, targets)

    def sample_gradients(
        self, parameters: Float[Tensor, " dim"], inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, "samples dim"], Float[Tensor, " samples"]]:
        """The gradient of every sample of a batch by one vectorised call, and their losses.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        return self._vectorised(self._split, parameters, inputs, targets)

    def _vectorised(
        self, call: object, parameters: Tensor, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert callable(call)
        values = self.layout.unflatten(parameters)
        gradients, losses = call(values, inputs, targets, copy.deepcopy(self._buffers))
        rows = [gradients[name].reshape(len(inputs), -1) for name in self.layout.names]
        return torch.cat(rows, dim=1), losses

    def _loss(
        self,
        values: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        buffers: dict[str, Tensor],
    ) -> Tensor:
        outputs = functional_call(self._model, {**values, **self._frozen, **buffers}, (inputs,))
        return self.loss(outputs, targets)

    def _loss_of_one(
        self,
        values: dict[str, Tensor],
        sample: Tensor,
        target: Tensor,
        buffers: dict[str, Tensor],
    ) -> Tensor:
        return self._loss(values, sample.unsqueeze(0), target.unsqueeze(0), buffers)


def _is_random(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in its mode: dropout, of its own or inside."""
    if not module.training:
        return False
    chance = getattr(module, "p", None) if isinstance(module, _DropoutNd) else None
    inner = getattr(module, "dropout", 0.0)
    return isinstance(module, nn.RReLU) or any(
        isinstance(value, float) and value > 0 for value in (chance, inner)
    )
