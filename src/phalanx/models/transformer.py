"""Transformer layers: embeddings, blocks of attention, and heads."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class TokenEmbedding(nn.Module):
    """A vector for each token and one for each place, added."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Sequences of vectors; they may be shorter than the longest."""
        found: Tensor = self.tokens(tokens) + self.places[: tokens.shape[1]]
        return found


class TransformerBlock(nn.Module):
    """Attention and a layer of four times the width, normalised before, added to what came in."""

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        """Every place looks at all others, or if causal at those before it, itself included."""
        parts = self.queries_keys_values(self.before_attention(x)).chunk(3, dim=-1)
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        found = scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        x = x + self.mixed(found.transpose(1, 2).flatten(-2))
        wide: Tensor = x + self.wide(x)
        return wide


class Mean(nn.Module):
    """The mean over all places of a sequence."""

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """One vector per sequence."""
        return x.mean(dim=1)


def check_sizes(
    input_shape: tuple[int, ...], num_classes: int, width: int, depth: int, num_heads: int
) -> int:
    """The longest sequence.

    Raises:
        ValueError: if a size is below 1, or the width is no multiple of the heads.
    """
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise ValueError(f"input_shape must be (length,) of at least 1, got {input_shape}")
    if num_classes < 1 or depth < 1:
        raise ValueError(f"num_classes and depth must be at least 1, got {num_classes} and {depth}")
    if num_heads < 1 or width < num_heads or width % num_heads:
        raise ValueError(f"width must be a multiple of {num_heads} num_heads, got {width}")
    return input_shape[0]
