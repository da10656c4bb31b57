"""Flows: their log-density is that of their prior at the latents and of autograd's Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import archspec
from compiler.exact import Grid, on_grid
from compiler.flow import Flow

SMALL = {
    "nice_digits": (),
    "realnvp_digits": ("stages.trunk.depth=2",),
    "momentum_flow_digits": ("stages.trunk.depth=3",),
    "glow_cifar10": (
        "input.image=[3, 8, 8]",
        *(f"stages.{stage}.depth=1" for stage in ("fine", "middle", "coarse")),
        *(
            f"stages.{stage}.functions.{name}.0.conv.out=4"
            for stage in ("fine", "middle", "coarse")
            for name in ("F", "G")
        ),
    ),
}


def flow_of(name: str, settings: Sequence[str] = ()) -> Flow:
    """A small one, its weights all away from those that they start as."""
    torch.manual_seed(0)
    flow = archspec.build(name, [*SMALL[name], *settings]).double().eval()
    assert isinstance(flow, Flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def data(flow: Flow, count: int = 1) -> Tensor:
    return torch.randn(count, *flow.input, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_densities_are_those_of_the_jacobian(name: str) -> None:
    flow = flow_of(name)
    flow.set_backward("store")
    value = data(flow)

    def latents(flat: Tensor) -> Tensor:
        found = flow.encode(flat.view(value.shape)).latents
        return torch.cat([latent.flatten() for latent in found])

    jacobian = torch.autograd.functional.jacobian(latents, value.flatten())  # type: ignore[no-untyped-call]
    wanted = torch.linalg.slogdet(jacobian).logabsdet
    encoded = flow.encode(value)
    torch.testing.assert_close(encoded.log_determinant[0], wanted)
    if name != "glow_cifar10":  # whose prior is learned
        prior = Normal(torch.zeros(()).double(), 1.0).log_prob(latents(value.flatten())).sum()
        torch.testing.assert_close(flow(value)[0], prior + wanted)


@pytest.mark.parametrize("name", SMALL)
def test_images_come_back(name: str) -> None:
    flow, value = flow_of(name), data(flow_of(name), 3)
    torch.testing.assert_close(flow.decode(flow.encode(value).latents), value)


def test_a_learned_prior_is_a_density_of_the_latents() -> None:
    """Of each number a normal one, whose mean and scale are read from what the latent was left
    behind by; and samples are of it."""
    flow = flow_of("glow_cifar10")
    encoded = flow.encode(data(flow, 2))
    total = encoded.log_determinant
    for prior, latent, context in zip(flow.priors, encoded.latents, encoded.contexts, strict=True):
        mean, log_scale = prior.moments(context)
        found = Normal(mean.expand_as(latent), log_scale.exp().expand_as(latent)).log_prob(latent)
        total = total + found.flatten(1).sum(1)
    torch.testing.assert_close(flow(data_of(flow, encoded)), total)
    noise = torch.randn(2, flow.dimensions, dtype=torch.float64)
    again = flow.encode(flow.from_noise(noise))
    standard = [
        ((latent - mean) * (-log_scale).exp()).flatten(1)
        for latent, (mean, log_scale) in zip(
            again.latents,
            [p.moments(c) for p, c in zip(flow.priors, again.contexts, strict=True)],
            strict=True,
        )
    ]
    torch.testing.assert_close(torch.cat(standard, 1), noise)


def data_of(flow: Flow, encoded: object) -> Tensor:
    return flow.decode(encoded.latents)  # type: ignore[attr-defined]


def test_momentum_contracts_by_gamma() -> None:
    """Half of the numbers, in each of twelve layers; the scale at the end is not that of them."""
    flow = archspec.build("momentum_flow_digits").double()
    found = flow.encode(data(flow)).log_determinant
    torch.testing.assert_close(found, torch.full_like(found, 12 * 32 * math.log(0.9)))


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_32_layers_of_a_trained_flow_come_back(arithmetic: str) -> None:
    """To 1e-4 in float32, and bit for bit where arithmetic is exact."""
    settings = ["stages.trunk.depth=32"]
    settings += [f"stages.{stage}.arithmetic={arithmetic}" for stage in ("trunk", "scale")]
    torch.manual_seed(0)
    flow = archspec.build("momentum_flow_digits", [*settings, "stages.trunk.constants.gamma=0.95"])
    assert isinstance(flow, Flow)
    source = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, 1, 8, 8, generator=source).cumsum(3) / 3 for _ in range(20)]
    flow.initialise(batches[0])
    optimizer = torch.optim.AdamW(flow.parameters(), 2e-3)
    for batch in batches:
        loss = -flow(batch).mean() / 64
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    flow.eval()
    with torch.no_grad():
        kept = flow.informations()
        encoded = flow.encode(batches[0], kept)
        back = flow.decode(encoded.latents, kept)
    if arithmetic == "float":
        assert not kept
        assert float((back - batches[0]).abs().max()) < 1e-4
    else:
        assert torch.equal(back, on_grid(batches[0], Grid(14)))
