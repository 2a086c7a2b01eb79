"""Transformer classifier of texts."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from phalanx.checks import require_at_least
from phalanx.models.transformer import Mean, TokenEmbedding, TransformerBlock, check_sizes


class TextClassifier(nn.Module):
    """A transformer over words, the mean of whose places is classified.

    Its `layers` are a plain chain, which `phalanx.pipeline.split` cuts into stages.

    Cost: about `24 depth width^2` multiplications per token and pass.
    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, the encoder.

    >>> import torch
    >>> TextClassifier((12,), 6, vocabulary=50)(torch.zeros(5, 12, dtype=torch.int64)).shape
    torch.Size([5, 6])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        vocabulary: int = 4096,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
    ) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: `(length,)` of the longest text, in words.
            num_classes: how many classes there are.
            vocabulary: words that are told apart.
            width: of the vector at every place.
            depth: blocks of attention.
            num_heads: of attention; the width is a multiple.

        Raises:
            ValueError: if a size is below 1, or the width is no multiple of the heads.
        """
        super().__init__()
        length = check_sizes(input_shape, num_classes, width, depth, num_heads)
        require_at_least(1, vocabulary=vocabulary)
        blocks = [TransformerBlock(width, num_heads, causal=False) for _ in range(depth)]
        head = nn.Sequential(nn.LayerNorm(width), Mean(), nn.Linear(width, num_classes))
        self.layers = nn.Sequential(TokenEmbedding(vocabulary, length, width), *blocks, head)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.layers(tokens)
        return logits
