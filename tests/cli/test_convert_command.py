"""archspec convert, and training from what it writes."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torchvision import models

import archspec as package
from archspec.cli import main

ROOT = Path(__file__).parents[2]
SPEC = """\
archspec: 1
name: tiny_momentum
summary: A small momentum ViT, annealed from a ViT
extends: momentum_vit_b_finetune
input: {image: [1, 8, 8]}
stem: [patch_embed: {patch: 2, width: 16}, class_token, position: learned]
stages:
  trunk:
    depth: 2
    functions:
      F: [layer_norm, attention: {heads: 2}]
      G: [layer_norm, mlp: {ratio: 2}]
    store_every: 1
    backward: {reversible: {from: 0.1}}
task: {classify: 10}
data: digits
train:
  start_from: tiny.safetensors
  epochs: 2
  batch: 64
  learning_rate: 2e-3
"""
CONVERT = ("convert", "tiny.yaml", "--from", "vit.pth")


def small_vit(classes: int = 10) -> nn.Module:
    """torchvision's, for digits; no parameter of it is zero."""
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    vit = models.VisionTransformer(8, 2, 2, 2, 16, 32, num_classes=classes, norm_layer=norm)
    vit.conv_proj = nn.Conv2d(1, 16, 2, 2)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return vit


@pytest.fixture
def vit(tmp_path: Path) -> nn.Module:
    """A model whose weights are in vit.pth, beside tiny.yaml."""
    (tmp_path / "tiny.yaml").write_text(SPEC)
    model = small_vit()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "vit.pth")
    return model


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fine_tuning_starts_from_the_pretrained_function(archspec, tmp_path, vit) -> None:
    done = archspec(*CONVERT)
    assert done.returncode == 0, done.stderr
    assert "loaded 5,018 parameters in 32 tensors" in done.stdout
    assert "next: archspec train tiny.yaml\n" in done.stdout

    model = package.build(tmp_path / "tiny.yaml")
    safetensors.torch.load_model(model, tmp_path / "tiny.safetensors")
    images = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(model(images), vit(images), rtol=0, atol=2e-5)
    stage = model.stages["trunk"]
    assert (stage.backward, stage.has_inverse) == ("reversible", False)
    model.set_progress(0.1)
    assert stage.has_inverse

    done = archspec("train", "tiny.yaml", "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["epochs"] == 2
    first, last = (
        json.loads(line)
        for line in (tmp_path / "runs/tiny_momentum/metrics.jsonl").read_text().splitlines()
    )
    assert last["train_loss"] < first["train_loss"]
    weights = safetensors.torch.load_file(tmp_path / "runs/tiny_momentum/last.safetensors")
    assert weights["stages.trunk.progress"] == 1
    (tmp_path / "tiny.safetensors").unlink()  # a run that has begun does without it
    again = archspec("train", "tiny.yaml", "--quiet", "--json")
    assert json.loads(again.stdout) == result


def photos(folder: Path) -> None:
    """Two classes of grey images."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 20), ("test", 2)):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (8, 8), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / label / f"{index}.png")


def test_the_commands_of_the_page_run(here: Path) -> None:
    """On a small model, and a small spec called as the page's; what it builds is checked."""
    (here / "momentum_vit_b_finetune.yaml").write_text(
        SPEC.replace("tiny_momentum", "momentum_vit_b_finetune").replace(
            "  start_from: tiny.safetensors\n", ""
        )
    )
    torch.save(small_vit().state_dict(), here / "vit.pth")
    photos(here / "photos")
    page = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [line[1] for line in lines] == ["convert", "train", *["build"] * 3, "convert", "train"]
    for program, command, *arguments in lines:
        assert program == "archspec"
        less = {"train": ["--set", "train.epochs=1", "--quiet"]}.get(command, [])
        given = ["vit.pth" if part == "vit_b_16" else part for part in arguments]
        reduced = "check" if command == "build" else command
        done = CliRunner().invoke(main, [reduced, *given, *less])
        assert done.exit_code == 0, done.stderr
    assert (here / "runs" / "two_classes" / "result.json").is_file()


def test_training_does_not_start_from_other_weights(invoked, tmp_path, vit) -> None:
    def refused(*settings: str) -> str:
        given = [part for setting in settings for part in ("--set", setting)]
        done = invoked("train", "tiny.yaml", *given)
        assert done.returncode == 2, done.stderr
        assert not (tmp_path / "runs").exists()
        return done.stderr.split("\n")[0]

    assert refused() == ("tiny.yaml:18:3: error[E606] tiny.safetensors is not there")
    (tmp_path / "tiny.safetensors").write_text("no weights")
    assert "error[E606] tiny.safetensors cannot be read: " in refused()
    (tmp_path / "tiny.safetensors").unlink()
    assert invoked(*CONVERT).returncode == 0
    assert refused("stages.trunk.depth=3").endswith(
        "has no stages.trunk.layers.2.F.layer_norm.weight, "
        "stages.trunk.layers.2.F.layer_norm.bias, "
        "stages.trunk.layers.2.F.attention.query_key_value.weight and 9 more"
    )
    assert refused("stages.trunk.depth=1").endswith("and 9 more, which the spec has not")
    assert refused("stages.trunk.functions.G.1.mlp.ratio=1").endswith(
        "tiny.safetensors has stages.trunk.layers.0.G.mlp.contract.weight as [16, 32], "
        "and the spec as [16, 16]"
    )


def test_another_file_is_not_replaced(invoked, tmp_path, vit) -> None:
    (tmp_path / "tiny.safetensors").write_text("mine")
    done = invoked(*CONVERT)
    assert done.returncode == 2
    assert "tiny.safetensors is another's file: not replaced" in done.stderr
    assert invoked(*CONVERT, "--output", "mine.safetensors").returncode == 0
    before = everything(tmp_path)
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    other = ("convert", "tiny.yaml", "--from", "vit.safetensors", "--output", "mine.safetensors")
    done = invoked(*other)
    assert done.returncode == 2
    assert "mine.safetensors holds tiny_momentum from vit.pth: not replaced" in done.stderr
    (tmp_path / "vit.safetensors").unlink()
    done = invoked(*CONVERT, "--output", "mine.safetensors", "--new-head")
    assert done.returncode == 2
    assert everything(tmp_path) == before
    assert invoked(*CONVERT, "--output", "mine.safetensors").returncode == 0
    assert everything(tmp_path) == before


def test_the_next_command_starts_from_what_was_written(archspec, vit) -> None:
    done = archspec(*CONVERT, "--set", "train.epochs=1", "--output", "my weights.safetensors")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("next: "))
    assert line == (
        "next: archspec train tiny.yaml --set train.epochs=1 "
        "--set 'train.start_from=my weights.safetensors'"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "none.pth"), "there is no file none.pth"),
        (("--from", "tiny.yaml"), "tiny.yaml cannot be read as a file of weights: "),
        (("--from", "code.pth"), "code.pth cannot be read as a file of weights: "),
        (("--from", "vit_b_61"), "did you mean `vit_b_16`?"),
        (
            ("--from", "vit_b_16:V9"),
            "vit_b_16 has no weights `V9`; names here: DEFAULT, IMAGENET1K_SWAG",
        ),
        (("--from", "vit.pth", "--set", "stages.trunk.depth=3"), "missing from the source: "),
        (("--from", "vit.pth", "--set", "task.classify.classes=7"), "--new-head starts the "),
        (
            ("--from", "vit_b_16", "--output", "no/where.safetensors"),
            "Error: cannot write no/where.safetensors: there is no folder no",
        ),
        (("--from", "vit_b_16", "--new-head"), "Error: vit_b_16 does not go into this spec: the "),
        (("--from", "odd.pth", "--resize-positions"), "positions are 2×17×16, and not 1×tokens×"),
        (("--from", "none.pth", "--resize-positions"), "there is no file none.pth"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(tmp_path, monkeypatch, vit, arguments, said) -> None:
    torch.save({"weight": Path("code")}, tmp_path / "code.pth")
    odd = {**vit.state_dict(), "encoder.pos_embedding": torch.zeros(2, 17, 16)}
    torch.save(odd, tmp_path / "odd.pth")
    before = everything(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", pytest.fail)
    done = CliRunner().invoke(main, ["convert", "tiny.yaml", *arguments])
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr
    assert "Usage" not in done.stderr
    assert everything(tmp_path) == before


def test_without_a_network_it_says_so(archspec, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    done = archspec("convert", "resnet18", "--from", "resnet18")
    assert done.returncode == 1
    assert "Error: the weights of resnet18 could not be downloaded: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "resnet18.safetensors").exists()


def test_a_model_by_its_name_is_compared(invoked, tmp_path, monkeypatch) -> None:
    """With weights where torchvision keeps those that it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    name = models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    path = tmp_path / "cache" / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    torch.save(models.resnet18(weights=None).state_dict(), path)

    small = ("--set", "input.image=[3, 64, 64]")
    done = invoked("convert", "resnet18", "--from", "resnet18", *small)
    assert done.returncode == 0, done.stderr
    assert "loaded 11,689,512 parameters in 122 tensors\noutputs differ by " in done.stdout
    assert "warning" not in done.stderr
    classes = ("--set", "task.classify.classes=7", "--output", "seven.safetensors")
    done = invoked("convert", "resnet18", "--from", "resnet18", *small, *classes, "--new-head")
    assert done.returncode == 0, done.stderr
    assert "loaded 11,176,512 parameters in 120 tensors; 3,591 of the new class" in done.stdout
    assert "outputs before the classifier differ by " in done.stdout
    assert "warning" not in done.stderr
    # Another function of the same weights.
    other = (
        "--set",
        "stages.conv2.update=[x = sigmoid(x + F(x))]",
        "--output",
        "other.safetensors",
    )
    done = invoked("convert", "resnet18", "--from", "resnet18", *small, *other)
    assert done.returncode == 0, done.stderr
    assert "warning: the network starts as another function than the model" in done.stderr
