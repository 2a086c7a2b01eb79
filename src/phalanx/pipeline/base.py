"""Activation codecs: encoding given what both sides remember of a sample."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.compression import Compressor, Message

Shape = tuple[int, ...]


class ActivationCodec(ABC):
    """Encodes activations of samples that were seen before. Hyper-parameters only, never state.

    A boundary remembers for it: what `decode` gives, as the buffer stores it, is what is remembered
    at the next visit of the sample.
    """

    @property
    @abstractmethod
    def quantizer(self) -> Compressor:
        """What writes the messages; of fixed size and without memory."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether activations travel as they are, so that nothing needs to be remembered."""

    @abstractmethod
    def encode(
        self,
        activations: Float[Tensor, "batch ..."],
        remembered: Float[Tensor, "batch ..."],
        generator: torch.Generator | None = None,
    ) -> Message:
        """What to send, given what is remembered, in the dtype of arithmetic.

        Args:
            activations: of the samples.
            remembered: of the same samples.
            generator: randomness, if the quantizer is random.

        Raises:
            NotFiniteError: if there is NaN or infinity in the activations.
            ValueError: if the quantizer is random and no generator is given.
        """

    @abstractmethod
    def decode(
        self, message: Message, remembered: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """The activations that a message stands for: the same bits on both sides."""
