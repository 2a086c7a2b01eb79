"""Thousands of small discriminators, trained at once as stacked tensors."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

_GAIN = 10.0  # of the class's part, which sees a tenth of the records and begins at zero
_CHUNK = 250  # teachers at a time: what is between stays small


class Teachers(nn.Module):
    """Class-conditional discriminators with one hidden layer: all teachers in one module.

    `D_t(x, y) = <w_t + 10 u_ty, h> + 10 <v_ty, x> + c_ty` with `h = leaky_relu(W_t^T x + b_t)`: the
    class enters by projections of the record, as a label among few inputs is overlooked in so few
    steps.

    Args:
        num_teachers: T.
        num_features: d, numbers of a record.
        num_classes: C.
        num_hidden: H, neurons.
        generator: of the initial weights.

    Shapes: parameters `(T, d, H)`, `(T, 1, H)`, `(T, H)`, `(T, C, H)`, `(T, C, d)` and `(T, C)`.
    Source of the projection: Miyato, Koyama, "cGANs with Projection Discriminator", ICLR 2018.
    """

    def __init__(
        self,
        num_teachers: int,
        num_features: int,
        num_classes: int,
        num_hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()

        def drawn(scale: float, *shape: int) -> nn.Parameter:
            draws = torch.rand(num_teachers, *shape, generator=generator)
            return nn.Parameter((2 * draws - 1) / math.sqrt(scale))

        self.weight = drawn(num_features, num_features, num_hidden)
        self.bias = drawn(num_features, 1, num_hidden)
        self.head = drawn(num_hidden, num_hidden)
        self.class_heads = nn.Parameter(torch.zeros(num_teachers, num_classes, num_hidden))
        self.class_pixels = nn.Parameter(torch.zeros(num_teachers, num_classes, num_features))
        self.class_bias = nn.Parameter(torch.zeros(num_teachers, num_classes))

    def forward(
        self,
        x: Float[Tensor, "t n d"],
        y: Int[Tensor, "t n"],
        rows: slice = slice(None),
    ) -> Float[Tensor, "t n"]:
        """Logits of records to be real, for the teachers in `rows`."""
        hidden = functional.leaky_relu(torch.baddbmm(self.bias[rows], x, self.weight[rows]), 0.2)
        every = torch.arange(len(x)).unsqueeze(1)
        heads = self.head[rows].unsqueeze(1) + _GAIN * self.class_heads[rows][every, y]
        seen = torch.einsum("tnd,tnd->tn", x, self.class_pixels[rows][every, y])
        return (hidden * heads).sum(dim=2) + _GAIN * seen + self.class_bias[rows][every, y]

    def chunks(self) -> list[slice]:
        """The teachers, so many at a time that what is between layers stays small."""
        total = len(self.weight)
        return [slice(at, min(at + _CHUNK, total)) for at in range(0, total, _CHUNK)]

    def learn(
        self,
        optimizer: torch.optim.Optimizer,
        real: Float[Tensor, "t n d"],
        labels: Int[Tensor, "t n"],
        fake: Float[Tensor, "m d"],
        picked: Int[Tensor, "t n"],
    ) -> None:
        """One step of every teacher: its records against fakes of the same labels.

        The loss is the sum over teachers of each one's mean, so that no teacher sees another.

        Args:
            optimizer: of these parameters; one that treats every number by itself, as Adam does.
            real: a batch of records of every teacher.
            labels: theirs.
            fake: fakes to take from.
            picked: row numbers of the fakes that each teacher sees.
        """
        optimizer.zero_grad(set_to_none=True)
        for rows in self.chunks():
            y = labels[rows]
            wrong = functional.softplus(-self(real[rows], y, rows))
            wrong = wrong + functional.softplus(self(fake[picked[rows]], y, rows))
            wrong.mean(dim=1).sum().backward()
        optimizer.step()

    def directions(
        self, x: Float[Tensor, "b d"], y: Int[Tensor, " b"], rows: slice = slice(None)
    ) -> Float[Tensor, "t b d"]:
        """Where each teacher in `rows` would move each fake to have it look more real.

        Minus the gradient of `log(1 + exp(-D_t(x, y)))` with respect to x, in closed form.
        """
        with torch.no_grad():
            total = len(self.weight[rows])
            before = torch.baddbmm(self.bias[rows], x.expand(total, *x.shape), self.weight[rows])
            slope = torch.where(before > 0, 1.0, 0.2)
            heads = self.head[rows].unsqueeze(1) + _GAIN * self.class_heads[rows][:, y]
            pixels = _GAIN * self.class_pixels[rows][:, y]
            logits = (before * slope * heads).sum(dim=2) + self.class_bias[rows][:, y]
            unsure = torch.sigmoid(-logits - torch.einsum("bd,tbd->tb", x, pixels)).unsqueeze(2)
            return unsure * torch.baddbmm(pixels, slope * heads, self.weight[rows].transpose(1, 2))
