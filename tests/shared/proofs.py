"""For each family of the zoo, what shows that its specs are the published systems."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """What a test file shows of a family."""

    family: str
    test: str
    """A file below tests."""
    says: str


PROOFS = (
    Proof(
        "ResNet",
        "zoo/test_resnet.py",
        "torchvision's weights load by a mapping, and give the same logits",
    ),
    Proof(
        "ViT",
        "zoo/test_convert_vit.py",
        "torchvision's and timm's weights load by a mapping, and give the same logits",
    ),
    Proof(
        "momentum ViT",
        "zoo/test_convert_vit.py",
        "as many parameters as its ViT; at gamma 0 the same network, bit for bit",
    ),
    Proof(
        "RevNet",
        "zoo/test_revnet.py",
        "outputs and gradients are those of memcnn, and of revtorch for one stage",
    ),
    Proof(
        "Momentum ResNet",
        "zoo/test_momentum_resnet.py",
        "outputs and gradients are those of momentumnet in its plain-backprop mode",
    ),
    Proof(
        "Rev-ViT",
        "zoo/test_zoo.py",
        "parameters and MACs are those published, to the last parameter",
    ),
    Proof(
        "momentum Rev-ViT",
        "zoo/test_transformers.py",
        "as many parameters as its Rev-ViT; at gamma 0 the same network, bit for bit",
    ),
    Proof(
        "MViT",
        "zoo/test_mvit.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
    ),
    Proof(
        "Rev-MViT",
        "zoo/test_mvit.py",
        "every row of the published block table; outputs and gradients of plain PyTorch",
    ),
    Proof("momentum Rev-MViT", "zoo/test_mvit.py", "as many parameters as its Rev-MViT"),
    Proof(
        "Hamiltonian",
        "zoo/test_hamiltonian.py",
        "gradients of stored activations; a step of depth 1202 in constant memory",
    ),
    Proof(
        "midpoint",
        "zoo/test_hamiltonian.py",
        "outputs and gradients of the equations; memory flat in depth",
    ),
    Proof(
        "leapfrog",
        "zoo/test_hamiltonian.py",
        "outputs and gradients of the equations; memory flat in depth",
    ),
    Proof(
        "ANODE",
        "zoo/test_anode.py",
        "gradients of stored activations for every solver; evaluations are the binomial optimum",
    ),
    Proof("MALI", "zoo/test_solvers.py", "order 2 on a linear equation"),
    Proof("reversible Heun", "zoo/test_solvers.py", "order 2 on a linear equation"),
    Proof(
        "BDIA",
        "zoo/test_transformers.py",
        "the ordinary transformer in evaluation; x starts where its first block ends",
    ),
    Proof(
        "LISTA",
        "runners/test_lasso.py",
        "ISTA's weights reach a fixed point; the RevNet coupling does not",
    ),
    Proof("i-RevNet", "zoo/test_irevnet.py", "image → features → image through the whole body"),
)
