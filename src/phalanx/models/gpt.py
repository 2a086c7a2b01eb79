"""GPT: a small causal transformer language model."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from phalanx.models.transformer import TokenEmbedding, TransformerBlock, check_sizes


class GPT(nn.Module):
    """A causal transformer: at every place of a sequence, scores of what comes next.

    Its `layers` are a plain chain, which `phalanx.pipeline.split` cuts into stages. There is no
    dropout, and embedding and head have weights of their own.

    Cost: about `24 depth width^2` multiplications per token and pass, and `4 depth length width` of
    attention.
    Source: Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask
    Learners", 2019, in small.

    >>> import torch
    >>> GPT((16,), 65, width=32, depth=2)(torch.zeros(5, 16, dtype=torch.int64)).shape
    torch.Size([5, 16, 65])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
    ) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: `(length,)` of the longest sequence.
            num_classes: tokens in the vocabulary.
            width: of the vector at every place.
            depth: blocks of attention.
            num_heads: of attention; the width is a multiple.

        Raises:
            ValueError: if a size is below 1, or the width is no multiple of the heads.
        """
        super().__init__()
        length = check_sizes(input_shape, num_classes, width, depth, num_heads)
        blocks = [TransformerBlock(width, num_heads, causal=True) for _ in range(depth)]
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        self.layers = nn.Sequential(TokenEmbedding(num_classes, length, width), *blocks, head)

    def forward(
        self, tokens: Int64[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length classes"]:
        """Logits of the next token at every place."""
        logits: Tensor = self.layers(tokens)
        return logits
