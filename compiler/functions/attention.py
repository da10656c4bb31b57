"""Multi-head self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.functions.tokens import linear


class Attention(nn.Module):
    """Self-attention over tokens (B, N, D) → (B, N, D), biases everywhere (Vaswani et al. 2017).

    A mask is (B, N, N), queries by keys, or (B, N), keys: numbers that are added to the scores, or
    booleans that say where to look.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = linear(channels, 3 * channels)
        self.project = linear(channels, channels)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over all tokens of a sample, or those that the mask leaves."""
        batch, count, channels = tokens.shape
        joined: Tensor = self.query_key_value(tokens)
        shape = (batch, count, 3, self.heads, channels // self.heads)
        query, key, value = joined.view(shape).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if mask is not None:
            mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None, :]
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise TypeError(f"a mask is boolean or floating-point, found {mask.dtype}")
            mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        result: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, count, channels))
        return result

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"heads={self.heads}, dropout={self.dropout}"
