"""Momentum ResNets beside those of the package momentumnet, in its plain-backprop mode."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
import torchvision
from momentumnet import MomentumNet, transform_to_momentumnet
from momentumnet.models import Bottleneck, MBottleneck, MResNet
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck as Unit
from torchvision.models.resnet import ResNet

import archspec
from compiler.conversion.convert import weights_of
from compiler.conversion.resnet import resnet_names
from compiler.network import Network
from compiler.stage import Stage

STAGES = ("conv2", "conv3", "conv4", "conv5")
UNITS = ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "conv3", "bn3")
UNIT = ["conv", "batch_norm", "", "conv_2", "batch_norm_2", "", "conv_3", "batch_norm_3"]
WITHIN = {theirs: ours for theirs, ours in zip(UNITS, UNIT, strict=True) if ours}
ENDS = {"conv1": "stem.conv", "bn1": "stem.batch_norm", "fc": "head.linear"}


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of a loss, for every parameter by name, and for the images."""
    images = images.clone().requires_grad_()
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(network(images).square().sum(), [*parameters, images])
    return dict(zip((*names, "images"), found, strict=True))


def assert_the_same(
    ours: nn.Module, theirs: nn.Module, names: Mapping[str, str], images: Tensor
) -> None:
    """Outputs, gradients, and the statistics of norms, by what each of our tensors is called in
    theirs."""
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)
    left, expected = weights_of(ours), theirs.state_dict()
    for name, value in left.items():
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-10, atol=1e-10)
    wanted = gradients(theirs, images)
    for name, gradient in gradients(ours, images).items():
        largest = wanted[names.get(name, name)].abs().max().item()
        torch.testing.assert_close(
            gradient, wanted[names.get(name, name)], rtol=1e-7, atol=1e-9 * max(1, largest)
        )


def small_settings(gamma: float, *more: str) -> list[str]:
    """Two units that drive the velocity in each stage."""
    depths = [f"stages.{stage}.depth=2" for stage in STAGES]
    gammas = [f"stages.{stage}.constants.gamma={gamma}" for stage in STAGES]
    # At gamma 0 there is no inverse: the velocity forgets all.
    backward = [f"stages.{stage}.backward=store" for stage in STAGES if gamma == 0]
    return [*depths, *gammas, *backward, *more]


# A ResNet converted as it is --------------------------------------------------------------------


def converted(gamma: float) -> tuple[Network, nn.Module, dict[str, str]]:
    """Our network and what momentumnet makes of torchvision's ResNet, with three units in each
    stage, of which it keeps the first."""
    torch.manual_seed(0)
    plain = ResNet(Unit, [3, 3, 3, 3], num_classes=10).double()
    theirs = transform_to_momentumnet(plain, gamma=gamma, use_backprop=True)
    settings = small_settings(gamma, "input.image=[3, 64, 64]", "task.classify=10")
    ours = archspec.build("momentum_resnet101", settings).double()
    plain_names = resnet_names(plain.state_dict())
    ours.load_state_dict({plain_names[key]: v for key, v in plain.state_dict().items()})
    return ours, theirs, {ours: in_momentumnet(key) for key, ours in plain_names.items()}


def in_momentumnet(key: str) -> str:
    """What a weight of torchvision's ResNet is called once momentumnet has converted it."""
    unit = re.fullmatch(r"(layer\d)\.(\d+)\.(.+)", key)
    if unit is None:
        return key
    layer, number, rest = unit[1], int(unit[2]), unit[3]
    return f"{layer}.0.{rest}" if number == 0 else f"{layer}.1.0.network.{number - 1}.{rest}"


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_a_converted_resnet_is_that_of_momentumnet(gamma: float) -> None:
    ours, theirs, names = converted(gamma)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_the_same(ours, theirs, names, images)


def test_it_has_the_weights_of_resnet101() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet101(weights=None)
        ours = archspec.build("momentum_resnet101")
    names = resnet_names(theirs.state_dict())
    shapes = {names[key]: value.shape for key, value in theirs.state_dict().items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}


# A ResNet that becomes one -----------------------------------------------------------------------


def becoming() -> tuple[Network, Network]:
    """ResNet-101 and the network that it becomes, at full depth with few channels, with the same
    weights. Norms are not those that start as the identity."""
    settings = ["input.image=[3, 64, 64]", "task.classify.classes=5"]
    for stage, width in zip(STAGES, (4, 8, 16, 32), strict=True):
        unit = f"stages.{stage}.transition.0.residual"
        settings.append(f"{unit}.body.0.conv.out={width}")
        settings += [f"{unit}.{last}.conv.out={4 * width}" for last in ("body.6", "shortcut.0")]
    torch.manual_seed(0)
    plain = archspec.build("resnet101", settings)
    variant = archspec.build("momentum_resnet101_finetune", settings)
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.2, 0.6)
            nn.init.normal_(norm.bias, 0, 0.1)
    variant.load_state_dict(plain.state_dict(), strict=False)
    return plain, variant


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_gamma_0_the_momentum_resnet_is_the_resnet_bit_for_bit(dtype: torch.dtype) -> None:
    """In training, and then in evaluation with the statistics of that batch. x + (relu(x + F) - x)
    rounds to the unit itself, for what leaves a unit is not negative."""
    plain, variant = (network.to(dtype) for network in becoming())
    images = torch.randn(4, 3, 64, 64, dtype=dtype)
    for training in (True, False):
        expected = plain.train(training)(images)
        assert expected.std() > 0.01
        assert torch.equal(variant.train(training)(images), expected)
    variant.set_progress(0.5)
    assert not torch.equal(variant(images), expected)


def test_at_gamma_0_its_gradients_are_those_of_the_resnet() -> None:
    """To rounding: those by the x that is added and by the one that is taken away are summed."""
    plain, variant = (network.double() for network in becoming())
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    assert_the_same(variant, plain, {name: name for name in weights_of(plain)}, images)


# The form for CIFAR -----------------------------------------------------------------------------


def cifar_name(key: str) -> str:
    """What a weight of momentumnet's ResNet for CIFAR is called in ours."""
    unit = re.fullmatch(r"layer(\d)\.(\d)\.(.+)\.(\w+)", key)
    if unit is None:
        module, kind = key.split(".")
        return f"{ENDS[module]}.{kind}"
    stage, inside, kind = f"stages.conv{int(unit[1]) + 1}", unit[3], unit[4]
    if inside.startswith("downsample"):
        layer = ["conv", "batch_norm"][int(inside[-1])]
        return f"{stage}.transition.residual.shortcut.{layer}.{kind}"
    if unit[2] == "0":
        return f"{stage}.transition.residual.body.{WITHIN[inside]}.{kind}"
    _, number, layer = inside.split(".")
    if number == "init":
        return f"{stage}.starts.V0.{WITHIN[layer]}.{kind}"
    return f"{stage}.layers.{number}.F.{WITHIN[layer]}.{kind}"


def for_cifar(gamma: float, init_speed: bool) -> tuple[Network, nn.Module, dict[str, str]]:
    """Our Momentum ResNet of CIFAR-10 with two units in each stage, and momentumnet's."""
    torch.manual_seed(0)
    theirs = MResNet(
        Bottleneck,
        MBottleneck,
        [3, 3, 3, 3],
        num_classes=10,
        gamma=gamma,
        init_speed=init_speed,
        use_backprop=True,
    ).double()
    spec = archspec.load("momentum_resnet101_cifar10").spec.model_dump(mode="json")
    for stage in spec["stages"].values() if init_speed else ():
        stage["streams"]["v"] = "V0(input)"
        stage["functions"]["V0"] = stage["functions"]["F"]
    ours = archspec.build(spec, small_settings(gamma, "input.image=[3, 16, 16]")).double()
    names = {cifar_name(key): key for key in theirs.state_dict()}
    state = theirs.state_dict()
    ours.load_state_dict({name: state[key] for name, key in names.items()})
    return ours, theirs, names


@pytest.mark.parametrize(
    ("gamma", "init_speed"), [(0.0, False), (0.5, True), (0.9, False), (0.9, True)]
)
def test_the_network_for_cifar_is_that_of_momentumnet(gamma: float, init_speed: bool) -> None:
    ours, theirs, names = for_cifar(gamma, init_speed)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_the_same(ours, theirs, names, images)


def test_it_has_as_many_parameters_as_momentumnet_has() -> None:
    with torch.device("meta"):
        theirs = MResNet(Bottleneck, MBottleneck, [3, 4, 23, 3], num_classes=10)
        ours = archspec.build("momentum_resnet101_cifar10")
    counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert counts == [42_512_970] * 2


# A stage alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("stage_name", ["fine", "coarse"])
def test_a_stage_with_a_learned_velocity_is_a_momentum_net(stage_name: str, gamma: float) -> None:
    """ResNet-32's units, from a velocity that is a function of the input."""
    torch.manual_seed(0)
    settings = [f"stages.{stage_name}.constants.gamma={gamma}"]
    stage = archspec.build("momentum_resnet32_cifar10_speed", settings).double().stages[stage_name]
    assert isinstance(stage, Stage)
    assert stage.backward == "reversible"
    functions = [layer.get_submodule("F") for layer in stage.layers]
    theirs = MomentumNet(
        functions, gamma, init_speed=True, init_function=stage.starts["V0"], use_backprop=True
    )
    entry = torch.randn(2, *stage.plan.input.sizes, dtype=torch.float64, requires_grad=True)
    shared = list(theirs.parameters())
    found = []
    for output in (theirs(entry), stage(*stage.start(entry))[0]):
        found.append((output, *torch.autograd.grad(output.square().sum(), [entry, *shared])))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)


def test_learned_gammas_stay_in_their_range_and_have_gradients() -> None:
    torch.manual_seed(0)
    network = archspec.build("momentum_resnet32_cifar10_gamma").double()
    loss = network(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum()
    loss.backward()
    for stage in network.stages:
        for layer in stage.layers:
            assert layer.coefficients.value("gamma").item() == pytest.approx(0.9)
            (logit,) = layer.coefficients.parameters()
            assert logit.grad is not None
            assert logit.grad.abs().item() > 0
