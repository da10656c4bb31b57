"""Multi-head self-attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from compiler.functions.tokens import linear


class Attention(nn.Module):
    """Self-attention over tokens (B, N, D) → (B, N, D), biases everywhere (Vaswani et al. 2017)."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = linear(channels, 3 * channels)
        self.project = linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend over all tokens of a sample."""
        batch, count, channels = tokens.shape
        joined: Tensor = self.query_key_value(tokens)
        shape = (batch, count, 3, self.heads, channels // self.heads)
        query, key, value = joined.view(shape).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        result: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, count, channels))
        return result

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"heads={self.heads}, dropout={self.dropout}"
