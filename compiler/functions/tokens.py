"""Images into tokens, maps of tokens, and tokens into one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(channels: int, out: int, bias: bool = True) -> nn.Linear:
    """A linear map with Glorot's uniform weights and no initial bias."""
    module = nn.Linear(channels, out, bias)
    nn.init.xavier_uniform_(module.weight)
    if bias:
        nn.init.zeros_(module.bias)
    return module


class Mlp(nn.Module):
    """linear → activation → dropout → linear → dropout, on (…, D)."""

    def __init__(self, channels: int, hidden: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.expand = linear(channels, hidden)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.contract = linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape as `tokens`."""
        hidden = self.dropout(self.activation(self.expand(tokens)))
        result: Tensor = self.dropout(self.contract(hidden))
        return result


class PatchEmbed(nn.Module):
    """Square patches of an image (B, C, H, W) → tokens (B, N, D), row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, patch)
        nn.init.xavier_uniform_(self.project.weight.view(width, -1))
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H/patch · W/patch, D)."""
        result: Tensor = self.project(image)
        return result.flatten(2).transpose(1, 2)


class PatchUnembed(nn.Module):
    """Tokens (B, N, D), row by row on a grid → square patches of an image (B, C, H, W)."""

    def __init__(self, width: int, channels: int, patch: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.patch, self.grid = channels, patch, grid
        self.project = linear(width, channels * patch**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, C, rows · patch, columns · patch)."""
        rows, columns = self.grid
        patches: Tensor = self.project(tokens)
        patches = patches.view(-1, rows, columns, self.channels, self.patch, self.patch)
        image = patches.permute(0, 3, 1, 4, 2, 5)
        return image.reshape(-1, self.channels, rows * self.patch, columns * self.patch)


class ToTokens(nn.Module):
    """Each pixel of an image (B, C, H, W) or a video (B, C, T, H, W) as a token."""

    def forward(self, value: Tensor) -> Tensor:
        """(B, C, …) → (B, N, C), row by row."""
        return value.flatten(2).transpose(1, 2)


class PatchMerge(nn.Module):
    """Squares of four tokens joined along their channels, normalised and mapped to `out` (Liu et
    al. 2021, Swin)."""

    def __init__(self, channels: int, out: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * channels, eps=1e-6)
        self.project = linear(4 * channels, out, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N/4, out)."""
        batch, _, channels = tokens.shape
        rows, columns = self.grid
        squares = tokens.view(batch, rows // 2, 2, columns // 2, 2, channels)
        # Within a square the channels of its columns come before those of its rows, as in Swin.
        joined = squares.permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * channels)
        result: Tensor = self.project(self.norm(joined))
        return result


class ClassToken(nn.Module):
    """One learned token put before the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N + 1, D)."""
        return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class Position(nn.Module):
    """A learned embedding of each position, added to tokens (B, N, D)."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, count, channels))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape as `tokens`."""
        return tokens + self.embedding


class Pool(nn.Module):
    """Tokens (B, N, D), images or videos (B, C, …) → one vector a sample (B, D)."""

    def __init__(self, by: str, channel_dimension: int) -> None:
        super().__init__()
        self.by = by
        grid = tuple(range(2, 1 - channel_dimension))
        self.over = (1,) if channel_dimension == -1 else grid

    def forward(self, value: Tensor) -> Tensor:
        """The mean, the maximum, or the first token."""
        if self.by == "first":
            return value[:, 0]
        return value.mean(self.over) if self.by == "mean" else value.amax(self.over)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return self.by
