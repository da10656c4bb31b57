"""Densities of data that come in levels: dequantisation, bits per dimension, and the Gaussian that
a flow is held against."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.data import LabelledImages
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Density


@dataclass(frozen=True)
class Levels:
    """Numbers from 0 to 1 that are whole ones, from 0 to `count - 1`, divided by the largest; and
    the continuous values that a flow takes for them."""

    count: int
    margin: float | None = None
    """With one, values are logits of margin + (1 - 2*margin)*share, of shares in [0, 1) (Dinh et
    al. 2017, section 4.1); else shares less a half."""

    def values(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, …) and uniform noise in [0, 1) of their shape → values of their shape, and
        what to add to their log-density, in nats, (B), for a lower bound of the log-probability of
        the levels (Theis et al. 2016, section 3.1)."""
        share = self.shares(images, noise)
        change = share.new_full((len(share),), -share[0].numel() * math.log(self.count))
        if self.margin is None:
            return share - 0.5, change
        within = self.margin + (1 - 2 * self.margin) * share
        slope = math.log(1 - 2 * self.margin) - within.log() - (1 - within).log()
        return within.logit(), change + slope.flatten(1).sum(1)

    def images(self, values: Tensor) -> Tensor:
        """Values (B, …) → the images of their levels, from 0 to 1."""
        return self.levels_of_shares(self._shares_of(values))

    def _shares_of(self, values: Tensor) -> Tensor:
        if self.margin is None:
            return values + 0.5
        return (values.sigmoid() - self.margin) / (1 - 2 * self.margin)

    def middles(self, values: Tensor) -> Tensor:
        """Values (B, …) → images, those of levels whole where values are in the middle of them."""
        return (self._shares_of(values) * self.count - 0.5) / (self.count - 1)

    def shares(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images (B, …) and uniform noise in [0, 1) of their shape → shares in [0, 1)."""
        return ((images * (self.count - 1)).round() + noise) / self.count

    def levels_of_shares(self, shares: Tensor) -> Tensor:
        """Shares (B, …) → the images of their levels, from 0 to 1."""
        return (shares * self.count).floor().clamp(0, self.count - 1) / (self.count - 1)


def levels_of(loaded: Loaded) -> Levels:
    """Those of the images of a spec whose task makes such. Raises `SpecError` for other data."""
    task, entry = loaded.spec.task, loaded.spec.data
    if not isinstance(entry, LabelledImages):
        holds = f"the data set {entry.kind} holds no images" if entry else "there are no images"
        message = f"the task is {task.kind}, and {holds}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("data",)))])
    return Levels(entry.levels, task.margin if isinstance(task, Density) else None)


def bits_per_dimension(log_density: Tensor, dimensions: int) -> Tensor:
    """From nats a sample (B): -log2 of the probability, for each number of the sample."""
    return -log_density / (dimensions * math.log(2))


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of vectors, with a full covariance."""

    mean: Tensor
    """(D), float64."""
    factor: Tensor
    """The lower triangular factor of the covariance, (D, D), float64."""

    def log_density(self, vectors: Tensor) -> Tensor:
        """Of vectors (N, D), in nats, (N)."""
        normal = torch.distributions.MultivariateNormal(self.mean, scale_tril=self.factor)
        found: Tensor = normal.log_prob(vectors.double())  # type: ignore[no-untyped-call]
        return found

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal numbers (N, D), float64 → vectors (N, D)."""
        return self.mean + noise @ self.factor.mT


def fitted_gaussian(batches: Iterable[Tensor]) -> Gaussian:
    """By maximum likelihood to vectors, in batches (N, D), of which there are more than D in all.
    Raises `torch.linalg.LinAlgError` where their covariance is singular."""
    count, start = 0, None
    for vectors in batches:
        vectors = vectors.double()
        if start is None:  # sums of what is left are small, and cancel nothing
            start = vectors.mean(0)
            total = torch.zeros_like(start)
            products = torch.zeros(len(start), len(start), dtype=torch.float64)
        apart = vectors - start
        count += len(apart)
        total += apart.sum(0)
        products += apart.mT @ apart
    assert start is not None
    shift = total / count
    covariance = products / count - torch.outer(shift, shift)
    return Gaussian(start + shift, torch.linalg.cholesky(covariance))
