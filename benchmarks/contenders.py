"""Who is compared side by side: the same modules run by archspec and by its peers."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torchvision
from small_spec import SMALL
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compiler.conversion.convert import convert, paired, weights_of
from compiler.network import Network
from compiler.stage import Stage

SIZES: Mapping[str, tuple[str, ...]] = {
    "small": SMALL,
    "large": (),
}
VIT = {
    "small": {"image": 64, "patch": 8, "width": 192, "heads": 3},
    "large": {"image": 224, "patch": 16, "width": 768, "heads": 12},
}
Body = Callable[[Tensor], Tensor]
"""Both streams (B, N, 2d), one behind the other, → the same after all layers; or images (B, 3, H,
W) → logits."""


class Rev:
    """The additive coupling: x1 += F(x2), x2 += G(x1)."""

    spec, settings, sizes = "rev_vit_b", ("stages.trunk.output=concat(x1, x2)",), SIZES

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.stem, self.stage = network.stem, cast(Stage, network.stages[0])
        self.minrev, self.half = arguments.minrev, arguments.precision == "bf16"
        self.pairs = [(layer.F, layer.G) for layer in self.stage.layers]

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return torch.cat(self.stage.split(self.stem(images)), -1).detach()

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: of all the same."""
        return list(self.stage.layers.parameters())

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self._plain,
            "archspec": lambda: ours(self.stage, "reversible"),
            "archspec, results kept": lambda: ours(self.stage, "reversible", 2 * len(self.pairs)),
            "torch.utils.checkpoint, every block": lambda: self._checkpointed,
            "memcnn": self._memcnn,
            "revlib": self._revlib,
            "revtorch": self._revtorch,
            **({"minREV": self._minrev} if self.minrev else {}),
        }

    def _minrev(self) -> Body:
        sys.path.insert(0, str(self.minrev))
        rev = importlib.import_module("rev")
        blocks = []
        for F, G in self.pairs:
            block = rev.ReversibleBlock(dim=8, num_heads=1, enable_amp=False)
            block.F, block.G = (Halved(each) if self.half else each for each in (F, G))
            blocks.append(block)
        return lambda value: cast(Tensor, rev.RevBackProp.apply(value, blocks))

    def _plain(self, value: Tensor) -> Tensor:
        x1, x2 = value.chunk(2, -1)
        for F, G in self.pairs:
            x1 = x1 + F(x2)
            x2 = x2 + G(x1)
        return torch.cat((x1, x2), -1)

    def _checkpointed(self, value: Tensor) -> Tensor:
        def block(x1: Tensor, x2: Tensor, F: nn.Module, G: nn.Module) -> tuple[Tensor, Tensor]:
            x1 = x1 + F(x2)
            return x1, x2 + G(x1)

        x1, x2 = value.chunk(2, -1)
        for F, G in self.pairs:
            x1, x2 = checkpoint(block, x1, x2, F, G, use_reentrant=False)
        return torch.cat((x1, x2), -1)

    def _memcnn(self) -> Body:
        import memcnn

        blocks = [
            memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(F, G, split_dim=2))
            for F, G in self.pairs
        ]
        return nn.Sequential(*blocks)

    def _revlib(self) -> Body:
        import revlib

        functions = [function for pair in self.pairs for function in pair]
        body: Body = revlib.ReversibleSequential(*functions, split_dim=2)
        return body

    def _revtorch(self) -> Body:
        import revtorch

        blocks = [revtorch.ReversibleBlock(F, G, split_along_dim=2) for F, G in self.pairs]
        body: Body = revtorch.ReversibleSequence(nn.ModuleList(blocks))
        return body


class Halved(nn.Module):
    """A function under autocast of its own, for a peer that replays it outside of any."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        """As the function."""
        with torch.autocast(value.device.type, torch.bfloat16):
            return cast(Tensor, self.function(value))


class Momentum:
    """v = gamma*v + (1 - gamma)*F(x), x += v."""

    spec, sizes = "rev_vit_b", SIZES
    settings = (
        "stages.trunk={coupling: momentum, functions: "
        "{F: [layer_norm, mlp: {ratio: 4}], G: null}, constants: {gamma: 0.9}}",
    )

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.stem, self.stage = network.stem, cast(Stage, network.stages[0])
        self.functions = [layer.F for layer in self.stage.layers]

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return cast(Tensor, self.stem(images)).detach()

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: of all the same."""
        return list(self.stage.layers.parameters())

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self._plain,
            "archspec": lambda: self._ours,
            "momentumnet": self._momentumnet,
        }

    def _plain(self, value: Tensor) -> Tensor:
        x, v = value, torch.zeros_like(value)
        for function in self.functions:
            v = 0.9 * v + (1 - 0.9) * function(x)
            x = x + v
        return x

    def _ours(self, value: Tensor) -> Tensor:
        self.stage.set_backward("reversible")
        out: Tensor = self.stage(*self.stage.start(value))[0]
        return out

    def _momentumnet(self) -> Body:
        from momentumnet import MomentumNet

        functions = [nn.Sequential(function) for function in self.functions]
        body: Body = MomentumNet(functions, gamma=0.9, use_backprop=False)
        return body


class ViT:
    """torchvision's, with weights that ours and timm's take over."""

    spec, settings = "vit_b", ()
    sizes: Mapping[str, tuple[str, ...]] = {
        "small": (
            "input={image: [3, 64, 64]}",
            "stem.0.patch_embed.patch=8",
            "stem.0.patch_embed.width=192",
            "stages.trunk.functions.F.1.attention.heads=3",
        ),
        "large": (),
    }

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.network = network
        size = VIT[arguments.size]
        self.theirs = torchvision.models.VisionTransformer(
            size["image"],
            size["patch"],
            arguments.depth,
            size["heads"],
            size["width"],
            4 * size["width"],
        )
        nn.init.normal_(self.theirs.heads.head.weight, std=0.02)
        self.theirs.to(next(network.parameters()).device).train()
        found = convert(self.theirs.state_dict(), weights_of(network))
        network.load_state_dict(found)
        self.size, self.depth = size, arguments.depth

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return images

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: each contender has its own."""
        module = body if isinstance(body, nn.Module) else self.network
        return list(module.parameters())

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self.theirs,
            "archspec, stored": lambda: self._ours("store"),
            "archspec, checkpoint": lambda: self._ours("checkpoint"),
            "timm, checkpointed": self._timm,
        }

    def _ours(self, strategy: str) -> Body:
        def body(value: Tensor) -> Tensor:
            self.network.set_backward(strategy)
            return cast(Tensor, self.network(value))

        return body

    def _timm(self) -> Body:
        import timm

        size = self.size
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=size["image"],
            patch_size=size["patch"],
            embed_dim=size["width"],
            depth=self.depth,
            num_heads=size["heads"],
        )
        device = next(self.network.parameters()).device
        names = paired(model.state_dict(), weights_of(self.network), new_head=False)
        ours = weights_of(self.network)
        model.load_state_dict({theirs: ours[name] for theirs, name in names.items()})
        model.set_grad_checkpointing(True)
        return cast(Body, model.to(device).train())


Kind = type[Rev] | type[Momentum] | type[ViT]


def ours(stage: Stage, strategy: str, results: int = 0) -> Body:
    """Our stage on streams that lie one behind the other."""

    def body(value: Tensor) -> Tensor:
        stage.set_backward(strategy, results=results)
        return torch.cat(stage(*value.chunk(2, -1)), -1)

    return body
