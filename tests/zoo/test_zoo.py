"""Every spec of the zoo: its size at full size, its numbers at a reduced one."""

from __future__ import annotations

import pytest
import torch
from proofs import ONLY_VERIFIED, OURS, PROOFS, Proof
from published import PUBLISHED
from zoo_specs import SPECS, full, reduced

from archspec.citations import family_of
from archspec.loading import load
from archspec.papers import PAPERS
from compiler.counting import costs, parameters
from compiler.network import Network, build
from compiler.resolve import resolve
from compiler.verify import verify


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_are_those_published(name: str) -> None:
    plan, published = full(name), PUBLISHED[name]
    with torch.device("meta"):
        assert parameters(Network(plan)) == published.parameters
    if published.gmacs is not None:
        counts = costs(plan).values()
        operations = sum((cost.macs or 0) + (cost.norms or 0) for cost in counts)
        assert round(operations / 1e9, 3) == published.gmacs


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_right_at_full_size(name: str) -> None:
    loaded = load(name)
    spec, plan = loaded.spec, resolve(loaded)
    assert spec.name == name
    assert spec.cite
    assert set(spec.cite) <= set(PAPERS)
    with torch.device("meta"):
        network = Network(plan)
        images = torch.empty(2, *plan.input.sizes)
        side = {s.name: torch.empty(2, *s.shape.sizes) for s in plan.side}
        assert network(images, **side).shape == (2, *plan.output.sizes)


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_verified_at_a_reduced_size(name: str) -> None:
    """Round trips and gradients against stored activations, in float32 and float64."""
    torch.manual_seed(0)
    network = build(resolve(reduced(name)))
    for stage in verify(network):
        assert stage.passed, stage
        assert stage.repeatable


@pytest.mark.parametrize("name", SPECS)
def test_gradients_of_the_whole_network_are_those_of_stored_activations(name: str) -> None:
    torch.manual_seed(0)
    network = build(resolve(reduced(name))).double().train()
    value = torch.randn(2, *network.plan.input.sizes, dtype=torch.float64)
    side = {s.name: torch.rand(2, *s.shape.sizes).double() for s in network.plan.side}
    found = []
    for backward in (None, "store"):
        if backward is not None:
            network.set_backward(backward)
        torch.manual_seed(1)
        given = value.clone().requires_grad_()
        loss = network(given, **side).square().mean()
        found.append(torch.autograd.grad(loss, [given, *network.parameters()], allow_unused=True))
    for ours, stored in zip(*found, strict=True):
        assert (ours is None) == (stored is None)
        if ours is not None and stored is not None:
            torch.testing.assert_close(ours, stored, rtol=1e-6, atol=1e-9)


def test_every_spec_has_a_proof_or_is_only_verified() -> None:
    proven = {name for proof in PROOFS for name in proof.specs}
    assert proven | ONLY_VERIFIED == set(SPECS)
    assert not proven & ONLY_VERIFIED
    assert set(SPECS) >= OURS


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: f"{proof.family}-{proof.test}")
def test_specs_of_a_proof_are_of_its_family(proof: Proof) -> None:
    assert {family_of(load(name).spec) for name in proof.specs} == {proof.family}
