"""Attention whose queries, keys and values are pooled over the tokens' grid."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from compiler.functions.pointwise import DropPath
from compiler.functions.tokens import linear


class HeadPool(nn.Module):
    """Tokens of every head (B, heads, N, d) over a coarser grid: a convolution channel by channel,
    which all heads share, and a norm (Fan et al. 2021, section 3.1)."""

    def __init__(
        self,
        channels: int,
        grid: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> None:
        super().__init__()
        convolution: type[Any] = nn.Conv2d if len(grid) == 2 else nn.Conv3d
        padding = tuple(side // 2 for side in kernel)
        self.conv = convolution(
            channels, channels, kernel, stride, padding, groups=channels, bias=False
        )
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.grid = grid

    def forward(self, heads: Tensor) -> Tensor:
        """(B, heads, N, d) → (B, heads, N', d)."""
        batch, count, _, channels = heads.shape
        laid = heads.transpose(2, 3).reshape(batch * count, channels, *self.grid)
        pooled = self.conv(laid).flatten(2).transpose(1, 2)
        result: Tensor = self.norm(pooled.reshape(batch, count, -1, channels))
        return result


class PooledAttention(nn.Module):
    """Self-attention over tokens (B, N, D) on a grid, keys and values pooled, and queries too where
    they have a stride (Fan et al. 2021)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        grid: tuple[int, ...],
        kernel: tuple[int, ...],
        query_stride: tuple[int, ...],
        key_stride: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = linear(channels, 3 * channels)
        width = channels // heads
        strided = math.prod(query_stride) > 1
        self.pool_query = HeadPool(width, grid, kernel, query_stride) if strided else nn.Identity()
        self.pool_key = HeadPool(width, grid, kernel, key_stride)
        self.pool_value = HeadPool(width, grid, kernel, key_stride)
        self.project = linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N', D): as many tokens as there are pooled queries."""
        batch, count, channels = tokens.shape
        joined: Tensor = self.query_key_value(tokens)
        shape = (batch, count, 3, self.heads, channels // self.heads)
        query, key, value = joined.view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            self.pool_query(query), self.pool_key(key), self.pool_value(value)
        )
        result: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, -1, channels))
        return result


class PoolingTransition(nn.Module):
    """x → pool(x) + attention(norm(x)): one pool for x and for the queries (Fan et al. 2021)."""

    def __init__(self, channels: int, attention: PooledAttention, drop_path: DropPath) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = attention
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N', D)."""
        batch, count, channels = tokens.shape
        heads = self.attention.heads
        split = tokens.view(batch, count, heads, channels // heads).transpose(1, 2)
        kept: Tensor = self.attention.pool_query(split)
        kept = kept.transpose(1, 2).reshape(batch, -1, channels)
        result: Tensor = kept + self.drop_path(self.attention(self.norm(tokens)))
        return result
