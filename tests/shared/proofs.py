"""For each family of the zoo, what shows that its specs are the systems they say they are, and
which specs are published systems."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """What a test file shows of some specs of a family."""

    family: str
    test: str
    """A file below tests."""
    says: str
    specs: tuple[str, ...]
    """The specs that the test covers, and no others of the family."""


PROOFS = (
    Proof(
        "ResNet",
        "zoo/test_resnet.py",
        "every weight of torchvision has its place",
        ("resnet18", "resnet50", "resnet101", "resnet152"),
    ),
    Proof(
        "ResNet",
        "zoo/test_resnet.py",
        "torchvision's weights give the same logits",
        ("resnet18", "resnet50"),
    ),
    Proof(
        "ResNet",
        "zoo/test_resnet.py",
        "it computes what memcnn does",
        ("resnet32_cifar10", "resnet110_cifar10", "resnet164_cifar10"),
    ),
    Proof(
        "ViT",
        "zoo/test_convert_vit.py",
        "timm's weights at the published depth give the same logits",
        ("vit_s", "vit_b", "vit_l"),
    ),
    Proof(
        "ViT",
        "zoo/test_rev_vit_equations.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("vit_cifar10", "vit_digits"),
    ),
    Proof(
        "momentum ViT",
        "zoo/test_convert_vit.py",
        "at gamma 0 it is its ViT bit for bit",
        ("momentum_vit_b_finetune",),
    ),
    Proof(
        "RevNet",
        "zoo/test_revnet.py",
        "outputs and gradients are those of memcnn, with `arithmetic: float`",
        ("revnet38_cifar10", "revnet110_cifar10", "revnet164_cifar10"),
    ),
    Proof(
        "RevNet",
        "zoo/test_revnet.py",
        "outputs and gradients are those of the equations",
        ("revnet_digits",),
    ),
    Proof(
        "RevNet",
        "zoo/test_revnet.py",
        "units that change the grid are those of the paper's code, with `arithmetic: float`",
        ("revnet104",),
    ),
    Proof(
        "Momentum ResNet",
        "zoo/test_momentum_resnet.py",
        "outputs and gradients are those of momentumnet in its plain-backprop mode, gamma fixed",
        ("momentum_resnet101", "momentum_resnet101_cifar10"),
    ),
    Proof(
        "Momentum ResNet",
        "zoo/test_momentum_resnet.py",
        "a stage with a learned start of the velocity is that of momentumnet",
        ("momentum_resnet32_cifar10_speed",),
    ),
    Proof(
        "Momentum ResNet",
        "zoo/test_momentum_resnet.py",
        "at gamma 0 it is the ResNet bit for bit",
        ("momentum_resnet101_finetune",),
    ),
    Proof(
        "Momentum ResNet",
        "zoo/test_momentum_resnet32.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        (
            "momentum_resnet32_cifar10",
            "momentum_resnet32_cifar10_gamma",
            "momentum_resnet32_cifar10_speed",
        ),
    ),
    Proof(
        "Rev-ViT",
        "zoo/test_zoo.py",
        "parameters and MACs are those published",
        ("rev_vit_s", "rev_vit_b", "rev_vit_l"),
    ),
    Proof(
        "Rev-ViT",
        "zoo/test_rev_vit_equations.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("rev_vit_s", "rev_vit_b", "rev_vit_l", "rev_vit_cifar10", "rev_vit_digits"),
    ),
    Proof(
        "momentum Rev-ViT",
        "zoo/test_transformers.py",
        "as many parameters as its Rev-ViT; at gamma 0 the same network bit for bit",
        (
            "momrev_vit_s",
            "momrev_vit_b",
            "momrev_vit_l",
            "momrev_vit_cifar10",
            "momrev_vit_cifar10_learned",
            "momrev_vit_cifar10_nesterov",
            "momrev_vit_cifar10_one",
            "momrev_vit_cifar10_scheduled",
            "momrev_vit_cifar10_shared",
            "momrev_vit_digits",
        ),
    ),
    Proof(
        "momentum Rev-ViT",
        "zoo/test_rev_vit_equations.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        (
            "momrev_vit_s",
            "momrev_vit_b",
            "momrev_vit_l",
            "momrev_vit_cifar10",
            "momrev_vit_cifar10_learned",
            "momrev_vit_cifar10_nesterov",
            "momrev_vit_cifar10_one",
            "momrev_vit_cifar10_scheduled",
            "momrev_vit_cifar10_shared",
            "momrev_vit_digits",
        ),
    ),
    Proof(
        "MViT",
        "zoo/test_mvit.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("mvit_b",),
    ),
    Proof(
        "Rev-MViT", "zoo/test_mvit.py", "every row of the published block table", ("rev_mvit_b",)
    ),
    Proof(
        "Rev-MViT",
        "zoo/test_mvit.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("rev_mvit_b", "rev_mvit_b_video", "rev_mvit_digits"),
    ),
    Proof(
        "momentum Rev-MViT",
        "zoo/test_mvit.py",
        "every row of the table of its Rev-MViT",
        ("momrev_mvit_b",),
    ),
    Proof(
        "momentum Rev-MViT",
        "zoo/test_mvit.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("momrev_mvit_b",),
    ),
    Proof(
        "Hamiltonian",
        "zoo/test_hamiltonian.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("hamiltonian74_cifar10", "hamiltonian218_cifar10"),
    ),
    Proof(
        "Hamiltonian",
        "zoo/test_hamiltonian.py",
        "at depth 1202 a step of training keeps no more than at depth 26",
        ("hamiltonian74_cifar10",),
    ),
    Proof(
        "midpoint",
        "zoo/test_hamiltonian.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("midpoint26_cifar10", "midpoint62_cifar10"),
    ),
    Proof(
        "leapfrog",
        "zoo/test_hamiltonian.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("leapfrog26_cifar10", "leapfrog62_cifar10"),
    ),
    Proof(
        "ANODE",
        "zoo/test_anode.py",
        "blocks are the steps written out; evaluations are the binomial optimum",
        (
            "anode_resnet10_cifar10",
            "anode_resnet10_cifar10_rk2",
            "anode_resnet10_cifar10_rk4",
        ),
    ),
    Proof(
        "ANODE",
        "zoo/test_anode.py",
        "blocks keep what they start from alone",
        ("anode_resnet10_cifar10_revolve",),
    ),
    Proof(
        "MALI",
        "zoo/test_ode_blocks.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("alf_cifar10",),
    ),
    Proof(
        "reversible Heun",
        "zoo/test_ode_blocks.py",
        "outputs and gradients are those of plain PyTorch, written from the equations",
        ("heun_cifar10",),
    ),
    Proof("MALI", "zoo/test_solvers.py", "of order 2 on a linear equation", ("alf_cifar10",)),
    Proof(
        "reversible Heun",
        "zoo/test_solvers.py",
        "of order 2 on a linear equation",
        ("heun_cifar10",),
    ),
    Proof(
        "BDIA",
        "zoo/test_bdia_equations.py",
        "the trunk in training is the equations, with `arithmetic: float`",
        ("bdia_vit_cifar10", "bdia_vit_digits", "bdia_vit_b_finetune"),
    ),
    Proof(
        "BDIA",
        "zoo/test_convert_vit.py",
        "at gamma 0 it is its ViT, the stream rounded",
        ("bdia_vit_b_finetune",),
    ),
    Proof(
        "BDIA",
        "zoo/test_transformers.py",
        "in evaluation the ordinary transformer",
        ("bdia_vit_cifar10",),
    ),
    Proof(
        "LISTA",
        "runners/test_lasso.py",
        "momentum rests where ISTA does, the RevNet does not",
        ("lista", "momentum_lista", "rev_lista"),
    ),
    Proof(
        "i-RevNet",
        "zoo/test_irevnet.py",
        "the authors' equations; image → features → image through the whole body",
        ("irevnet_cifar10",),
    ),
    *(
        Proof(
            family,
            "zoo/test_rev_dit.py",
            "velocities and gradients are those of plain PyTorch, written from the equations",
            specs,
        )
        for family, specs in (
            ("Rev-DiT", ("rev_dit_cifar10", "rev_dit_digits", "rev_dit_digits_classes")),
            ("momentum Rev-DiT", ("momrev_dit_cifar10", "momrev_dit_digits")),
        )
    ),
    *(
        Proof(
            family,
            "zoo/test_flows.py",
            "log-densities are those of autograd's Jacobian; images come back from latents",
            (spec,),
        )
        for family, spec in (
            ("NICE", "nice_digits"),
            ("RealNVP", "realnvp_digits"),
            ("Glow", "glow_cifar10"),
            ("momentum flow", "momentum_flow_digits"),
        )
    ),
)

ONLY_VERIFIED: frozenset[str] = frozenset()
"""Specs of which no proof says more than tests/zoo/test_zoo.py and test_settings_of_zoo.py do."""

OURS = frozenset(
    {
        "alf_cifar10",
        "anode_resnet10_cifar10_revolve",
        "bdia_vit_b_finetune",
        "bdia_vit_digits",
        "glow_cifar10",
        "heun_cifar10",
        "irevnet_cifar10",
        "lista",
        "momentum_flow_digits",
        "momentum_lista",
        "momentum_resnet101_finetune",
        "momentum_resnet32_cifar10",
        "momentum_resnet32_cifar10_gamma",
        "momentum_resnet32_cifar10_speed",
        "momentum_vit_b_finetune",
        "momrev_dit_cifar10",
        "momrev_dit_digits",
        "momrev_mvit_b",
        "momrev_vit_b",
        "momrev_vit_cifar10",
        "momrev_vit_cifar10_learned",
        "momrev_vit_cifar10_nesterov",
        "momrev_vit_cifar10_one",
        "momrev_vit_cifar10_scheduled",
        "momrev_vit_cifar10_shared",
        "momrev_vit_digits",
        "momrev_vit_l",
        "momrev_vit_s",
        "mvit_b",
        "nice_digits",
        "realnvp_digits",
        "rev_dit_cifar10",
        "rev_dit_digits",
        "rev_dit_digits_classes",
        "rev_lista",
        "rev_mvit_b_video",
        "rev_mvit_digits",
        "rev_vit_digits",
        "revnet_digits",
        "vit_cifar10",
        "vit_digits",
    }
)
"""Specs of which nobody has published the network, or not on their data set."""
