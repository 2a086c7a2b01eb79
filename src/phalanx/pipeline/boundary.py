"""Boundary between two pipeline stages: what crosses it, and what a side remembers."""

import zlib
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from phalanx.communication import SharedTensor
from phalanx.communication.wire import integers_from_bytes, integers_to_bytes
from phalanx.compression import Compressor, SampleQuantization
from phalanx.errors import DriftError
from phalanx.floats import working
from phalanx.pipeline.activation_difference import ActivationDifference
from phalanx.pipeline.base import ActivationCodec, Shape
from phalanx.pipeline.buffers import BufferKind, SampleBuffer, make_buffer
from phalanx.pipeline.rows import FULL, Rows, cut, pick, put_together
from phalanx.randomness import generator

_CHECKSUM_BYTES = 4


class MicrobatchPlan(NamedTuple):
    """What both sides know of a micro-batch before it crosses.

    Attributes:
        ids: `(batch,)` int64, the samples.
        full: `(batch,)` bool, whose activations travel as they are.
        full_gradient: `(batch,)` bool, whose gradients do.
        number: micro-batches that passed before: where randomness comes from.
    """

    ids: Int64[Tensor, " batch"]
    full: Bool[Tensor, " batch"]
    full_gradient: Bool[Tensor, " batch"]
    number: int


class BoundaryTraffic(NamedTuple):
    """What has crossed a boundary so far.

    Attributes:
        activation_bytes: forward, in training.
        gradient_bytes: backward.
        full_samples: samples whose activations travelled as they are, each visit counted.
        coarse_samples: samples whose activations were compressed, each visit counted.
    """

    activation_bytes: int = 0
    gradient_bytes: int = 0
    full_samples: int = 0
    coarse_samples: int = 0


class ActivationBoundary:
    """One side of the border between two stages; the other side has one with the same arguments.

    For every micro-batch, both sides call `plan` with its samples; then, in this order,

    - the sender `send_activations`, the receiver `receive_activations`;
    - later the receiver `send_gradients`, the sender `receive_gradients`.

    Bytes go over whatever carries bytes; how many there will be, both sides know before
    (`num_activation_bytes`, `num_gradient_bytes`). Micro-batches must pass forward in the same
    order on both sides; the way back may have another.

    A sample's activations travel as they are in its first `warmup_epochs` visits, at least in its
    first; its gradients in its first `warmup_epochs`. The receiver goes on from what came, and in
    later visits from what is stored, so both sides know the same of a sample, bit for bit, as long
    as their processors round alike (IEEE 754, which they do).
    """

    def __init__(
        self,
        shape: Shape,
        num_samples: int,
        *,
        dtype: torch.dtype = torch.float32,
        forward: ActivationCodec | Compressor | None = None,
        backward: Compressor | None = None,
        warmup_epochs: int = 1,
        buffer: BufferKind = "memory",
        buffer_dtype: torch.dtype = torch.float16,
        buffer_bits: int = 4,
        folder: Path | None = None,
        checksum: bool = False,
        seed: int = 0,
        name: str = "0",
        device: torch.device | str = "cpu",
    ) -> None:
        """A side that has seen nothing yet.

        Args:
            shape: of the activations of one sample.
            num_samples: of the data set; ids are below.
            dtype: of the activations.
            forward: how activations are compressed: as differences, by default of 4 bits; or by a
                compressor, without memory.
            backward: how their gradients are; by default `SampleQuantization(bits=8)`.
            warmup_epochs: visits of a sample in which nothing of it is compressed.
            buffer: where activations are remembered: `memory`, `disk`, or rounded in `low_bit`.
            buffer_dtype: of them in memory and on disk.
            buffer_bits: of them in a low-bit buffer.
            folder: for a buffer on disk; by default a temporary one.
            checksum: whether the receiver checks, for four bytes a micro-batch and a pass, that
                both sides remember the same.
            seed: of stochastic rounding.
            name: of this boundary among those of the run.
            device: where activations lie.

        Raises:
            ValueError: if an argument is out of its range, the buffer does not fit, or a
                compressor remembers something or sends messages of varying size.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, got {warmup_epochs}")
        self.shape, self.dtype = shape, dtype
        self.forward = ActivationDifference() if forward is None else forward
        self.backward = SampleQuantization() if backward is None else backward
        for role, one in (("forward", self._quantizer), ("backward", self.backward)):
            require_plain(role, one)
        self.warmup_epochs = warmup_epochs
        self.traffic = BoundaryTraffic()
        self._checksum = checksum
        self._path = (seed, "pipeline", name)
        self._device = torch.device(device)
        self._working = working(dtype)
        self._visits = torch.zeros(num_samples, dtype=torch.int32)
        self._passed = 0
        self.buffer: SampleBuffer | None = None
        if remembers(self.forward):
            self.buffer = make_buffer(
                buffer,
                num_samples,
                shape,
                dtype=buffer_dtype,
                bits=buffer_bits,
                working=self._working,
                device=device,
                folder=folder,
                name=f"activations-{name}",
            )

    @property
    def _quantizer(self) -> Compressor:
        """What compresses activations after the warm-up."""
        return self.forward.quantizer if isinstance(self.forward, ActivationCodec) else self.forward

    @property
    def _coarse_dtype(self) -> torch.dtype:
        """Of what it compresses: differences are as wide as arithmetic."""
        return self.dtype if self.buffer is None else self._working

    def plan(self, ids: Tensor) -> MicrobatchPlan:
        """What is to cross of a micro-batch of these samples, given what has crossed before.

        Args:
            ids: `(batch,)` int64.

        Raises:
            ValueError: if ids are not whole numbers from 0 on, below the number of samples, and
                different from each other.
        """
        ids = ids.cpu()
        if ids.dtype != torch.int64 or ids.ndim != 1 or not len(ids):
            raise ValueError(f"ids must be int64 of one axis, got {ids.dtype}, {tuple(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= len(self._visits):
            raise ValueError(
                f"ids must be from 0 to {len(self._visits) - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )
        if len(ids.unique()) < len(ids):
            raise ValueError(f"ids of a micro-batch must differ, got {ids.tolist()}")
        visits = self._visits[ids]
        exact = isinstance(self.forward, ActivationCodec) and self.forward.exact
        full = visits < max(self.warmup_epochs, 0 if self.buffer is None else 1)
        full = torch.ones_like(full) if exact else full
        return MicrobatchPlan(ids, full, visits < self.warmup_epochs, self._passed)

    def num_activation_bytes(self, plan: MicrobatchPlan) -> int:
        """Bytes of the activations of this micro-batch."""
        check = _CHECKSUM_BYTES if self._checked else 0
        return check + self._length(plan.full, self._quantizer, self._coarse_dtype)

    def num_gradient_bytes(self, plan: MicrobatchPlan) -> int:
        """Bytes of the gradients of this micro-batch."""
        return self._length(plan.full_gradient, self.backward, self.dtype)

    def send_activations(
        self, activations: Float[Tensor, "batch ..."], plan: MicrobatchPlan
    ) -> UInt8[Tensor, " bytes"]:
        """The sender's side of the way forward: what to send; remembers what arrives.

        Raises:
            NotFiniteError: if there is NaN or infinity; nothing is remembered of it then.
            ValueError: if the activations are not those of such samples.
        """
        return self._forward(activations, plan)[0]

    def carry_activations(
        self, activations: Float[Tensor, "batch ..."], plan: MicrobatchPlan
    ) -> Float[Tensor, "batch ..."]:
        """What the receiver would go on from; for simulations, with one side for both."""
        return self._forward(activations, plan)[1]

    def _forward(self, activations: Tensor, plan: MicrobatchPlan) -> tuple[Tensor, Tensor]:
        values = activations.detach()
        if tuple(values.shape) != (len(plan.ids), *self.shape) or values.dtype != self.dtype:
            raise ValueError(
                f"activations must be {self.dtype} of shape {(len(plan.ids), *self.shape)}, "
                f"got {values.dtype} of {tuple(values.shape)}"
            )
        whole, others = pick(values, plan.full), pick(values, ~plan.full)
        remembered = self._remembered(plan)
        full = coarse = None
        if whole is not None:
            full = FULL.encode(whole)
        if others is not None:
            source = self._generator(self._quantizer, "forward", plan)
            if remembered is not None:
                assert isinstance(self.forward, ActivationCodec)
                coarse = self.forward.encode(others.to(self._working), remembered, source)
            else:
                coarse = self._quantizer.encode(others, source)
        rows = Rows(full, coarse)
        data = rows.to_tensor()
        received, check = self._settle(rows, remembered, plan)
        if self._checked:
            data = torch.cat([data, integers_to_bytes([check], "<u4").to(data.device)])
        self._count(plan, data.numel())
        return data, received

    def receive_activations(
        self, data: UInt8[Tensor, " bytes"], plan: MicrobatchPlan
    ) -> Float[Tensor, "batch ..."]:
        """The receiver's side of the way forward: the activations to go on from.

        Raises:
            WireError: if these are not the bytes of such activations; nothing is remembered then.
            DriftError: if the two sides remember something else, and there is a checksum.
        """
        end = data.numel() - (_CHECKSUM_BYTES if self._checked else 0)
        known = (self.shape, self.dtype, self._quantizer, self._coarse_dtype)
        rows = cut(data[: max(end, 0)], plan.full, *known)
        received, check = self._settle(rows, self._remembered(plan), plan)
        if self._checked and integers_from_bytes(data[end:], "<u4") != [check]:
            raise DriftError(
                f"both sides of boundary {self._path[-1]} must remember the same of samples "
                f"{plan.ids.tolist()}, but their checksums differ"
            )
        self._count(plan, data.numel())
        return received

    def _remembered(self, plan: MicrobatchPlan) -> Tensor | None:
        """What the rows to be compressed were when they last crossed; None without memory."""
        if self.buffer is None or bool(plan.full.all()):
            return None
        return self.buffer.read(plan.ids[~plan.full])

    def _settle(
        self, rows: Rows, remembered: Tensor | None, plan: MicrobatchPlan
    ) -> tuple[Float[Tensor, "batch ..."], int]:
        """Remembers what crossed, on either side; the activations, and a checksum."""
        check = self._summed(0, plan.ids)
        whole = others = None
        if rows.full is not None:
            whole = FULL.decode(rows.full)
            if self.buffer is not None:
                check = self._summed(check, self.buffer.write(plan.ids[plan.full], whole))
        if rows.coarse is not None:
            if self.buffer is not None:
                assert remembered is not None
                assert isinstance(self.forward, ActivationCodec)
                others = self.forward.decode(rows.coarse, remembered)
                others = self.buffer.write(plan.ids[~plan.full], others)
                check = self._summed(check, others)
            else:
                others = self._quantizer.decode(rows.coarse)
        self._visits[plan.ids] += 1
        self._passed += 1
        return put_together(whole, others, plan.full).to(self.dtype), check

    @property
    def _checked(self) -> bool:
        return self._checksum and self.buffer is not None

    def _summed(self, check: int, stored: Tensor) -> int:
        if not self._checked:
            return check
        return zlib.crc32(SharedTensor.pack(stored).content.data, check)

    def send_gradients(
        self, gradients: Float[Tensor, "batch ..."], plan: MicrobatchPlan
    ) -> UInt8[Tensor, " bytes"]:
        """The receiver's side of the way back: what to send.

        Raises:
            NotFiniteError: if there is NaN or infinity.
        """
        return self._backward(gradients, plan)[0]

    def carry_gradients(
        self, gradients: Float[Tensor, "batch ..."], plan: MicrobatchPlan
    ) -> Float[Tensor, "batch ..."]:
        """What the sender would go back with; for simulations, with one side for both."""
        return self._backward(gradients, plan)[1]

    def _backward(self, gradients: Tensor, plan: MicrobatchPlan) -> tuple[Tensor, Tensor]:
        values = gradients.detach()
        whole, others = pick(values, plan.full_gradient), pick(values, ~plan.full_gradient)
        source = self._generator(self.backward, "backward", plan)
        rows = Rows(
            None if whole is None else FULL.encode(whole),
            None if others is None else self.backward.encode(others, source),
        )
        data = rows.to_tensor()
        self._count_back(data.numel())
        return data, self._gradients(rows, plan)

    def receive_gradients(
        self, data: UInt8[Tensor, " bytes"], plan: MicrobatchPlan
    ) -> Float[Tensor, "batch ..."]:
        """The sender's side of the way back: the gradients to go back with.

        Raises:
            WireError: if these are not the bytes of such gradients.
        """
        rows = cut(data, plan.full_gradient, self.shape, self.dtype, self.backward, self.dtype)
        self._count_back(data.numel())
        return self._gradients(rows, plan)

    def _gradients(self, rows: Rows, plan: MicrobatchPlan) -> Tensor:
        whole = None if rows.full is None else FULL.decode(rows.full)
        others = None if rows.coarse is None else self.backward.decode(rows.coarse)
        return put_together(whole, others, plan.full_gradient)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on as if it had not stopped, for this side of the boundary.

        Tensors and numbers only: `torch.load(..., weights_only=True)` reads it. Buffers are the
        buffers themselves, not copies: save them before the next step.
        """
        return {
            "passed": self._passed,
            "visits": self._visits,
            "traffic": list(self.traffic),
            "buffer": {} if self.buffer is None else self.buffer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave on the same side.

        Raises:
            ValueError: if it is that of another boundary.
        """
        if state["visits"].shape != self._visits.shape:
            raise ValueError(
                f"state must be that of {len(self._visits)} samples, got {len(state['visits'])}"
            )
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        elif state["buffer"]:
            raise ValueError("state must hold no buffer where nothing is remembered")
        self._passed = int(state["passed"])
        self._visits.copy_(state["visits"])
        self.traffic = BoundaryTraffic(*state["traffic"])

    def _generator(
        self, compressor: Compressor, way: str, plan: MicrobatchPlan
    ) -> torch.Generator | None:
        return generator(*self._path, way, plan.number) if compressor.random else None

    def _length(
        self, full: Bool[Tensor, " batch"], compressor: Compressor, dtype: torch.dtype
    ) -> int:
        many = int(full.sum())
        exact = many * prod(self.shape) * self.dtype.itemsize
        return exact + compressor.num_bytes((len(full) - many, *self.shape), dtype)

    def _count(self, plan: MicrobatchPlan, length: int) -> None:
        many = int(plan.full.sum())
        self.traffic = self.traffic._replace(
            activation_bytes=self.traffic.activation_bytes + length,
            full_samples=self.traffic.full_samples + many,
            coarse_samples=self.traffic.coarse_samples + len(plan.ids) - many,
        )

    def _count_back(self, length: int) -> None:
        self.traffic = self.traffic._replace(gradient_bytes=self.traffic.gradient_bytes + length)


def remembers(forward: ActivationCodec | Compressor) -> bool:
    """Whether both sides need a buffer."""
    return isinstance(forward, ActivationCodec) and not forward.exact


def require_plain(role: str, compressor: Compressor) -> None:
    """Raises a `ValueError` unless messages are of fixed size and nothing is remembered."""
    if not compressor.fixed_size:
        raise ValueError(f"{role} must send messages of fixed size, got {compressor}")
    if compressor.init(torch.zeros(2, 2)):
        raise ValueError(
            f"{role} must remember nothing, as each micro-batch has other samples, got {compressor}"
        )
