"""What users read where data, a device or a run's folder is wrong, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from archspec.diagnostics import SpecError
from archspec.loading import load
from runners.train import train

SPEC = """\
archspec: 1
name: tiny
summary: A spec for messages
input: {image: [1, 8, 8]}
stages:
  trunk:
    depth: 1
    coupling: additive
    functions: {F: [tanh], G: [tanh]}
head: [pool: mean, linear: classes]
task: {classify: 10}
data: digits
train: {epochs: 1, batch: 64, learning_rate: 1e-3}
"""
CASES = {
    "no data": (
        "data: digits",
        "data: {cifar10: {root: nowhere, download: false}}",
        "input: {image: [1, 8, 8]}",
        "input: {image: [3, 32, 32]}",
        "cpu",
        """\
spec.yaml:12:18: error[E601] CIFAR-10 is not in nowhere
    12 | data: {cifar10: {root: nowhere, download: false}}
       |                  ^^^^
  help: put the folder cifar-10-batches-py of the Python version into nowhere, or name \
where it is: --set data.cifar10.root=FOLDER""",
    ),
    "data that do not fit": (
        "task: {classify: 10}",
        "task: {classify: 7}",
        "",
        "",
        "cpu",
        """\
spec.yaml:11:1: error[E602] digits has 10 classes, and the task 7
    11 | task: {classify: 7}
       | ^^^^
  help: write `task: {classify: {classes: 10}}`, or --set task.classify.classes=10""",
    ),
    "a crop past the image": (
        "data: digits",
        "data: {digits: {augment: [horizontal_flip, random_crop: 8]}}",
        "",
        "",
        "cpu",
        """\
spec.yaml:12:44: error[E602] a padding of 8 is no less than a side of the images, 8
    12 | data: {digits: {augment: [horizontal_flip, random_crop: 8]}}
       |                                            ^^^^^^^^^^^^^^
  help: write the pixels: random_crop: 4""",
    ),
    "no such device": (
        "",
        "",
        "",
        "",
        "abacus",
        """\
error[E603] there is no kind of device `abacus`
  help: write auto, cpu, cuda, cuda:1 or mps""",
    ),
    "problems that no method solves": (
        "data: digits",
        "data: {sparse_codes: {samples: 2, tests: 1, noise: 1e6}}",
        """\
input: {image: [1, 8, 8]}
stages:
  trunk:
    depth: 1
    coupling: additive
    functions: {F: [tanh], G: [tanh]}
head: [pool: mean, linear: classes]
task: {classify: 10}
""",
        """\
input: {features: [8]}
stages:
  trunk:
    depth: 1
    coupling: additive
    functions: {F: [tanh], G: [tanh]}
head: [linear: 16]
task: {sparse_code: 16}
""",
        "cpu",
        """\
spec.yaml:12:1: error[E602] Lasso problems, 2 of 2 taken together, are not solved after 20000 steps
    12 | data: {sparse_codes: {samples: 2, tests: 1, noise: 1e6}}
       | ^^^^
  help: make `task.sparse_code.penalty` larger, or `data.sparse_codes.noise` smaller""",
    ),
    "a folder of something else": (
        "",
        "",
        "",
        "",
        "cpu",
        """\
error[E604] run is no run and holds notes.txt
  help: choose another folder with --output""",
    ),
    "no data set named": (
        "data: digits\n",
        "",
        "",
        "",
        "cpu",
        """\
spec.yaml:2:1: error[E605] tiny cannot be trained: it has no `data`, what to train on
    2 | name: tiny
      | ^^^^
  help: add `data: digits`, or `extends` a shipped spec that has what you need""",
    ),
    "no weights to start from": (
        "learning_rate: 1e-3}",
        "learning_rate: 1e-3, start_from: w.safetensors}",
        "",
        "",
        "cpu",
        """\
spec.yaml:13:52: error[E606] w.safetensors is not there
    13 | train: {epochs: 1, batch: 64, learning_rate: 1e-3, start_from: w.safetensors}
       |                                                    ^^^^^^^^^^
  help: `archspec convert SPEC --from MODEL` writes the weights of a model for a spec""",
    ),
    "side inputs": (
        "functions: {F: [tanh], G: [tanh]}",
        "functions: {F: [add], G: [tanh]}\n    update: [x1 += F(x2, s), x2 += G(x1)]\n"
        "    streams: {x1: input, x2: input}\n    output: x1 + x2\nside: {s: {image: [1, 8, 8]}}",
        "    coupling: additive\n",
        "",
        "cpu",
        """\
spec.yaml:12:8: error[E605] neither the data sets here nor the task classify give `s`
    12 | side: {s: {image: [1, 8, 8]}}
       |        ^
  help: train such a network in Python: model(images, s=tensor)""",
    ),
}


@pytest.mark.parametrize("title", CASES)
def test_a_mistake_is_told_word_for_word(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, fourth, device, expected = CASES[title]
    monkeypatch.chdir(tmp_path)
    text = SPEC.replace(first, second) if first else SPEC
    text = text.replace(third, fourth) if third else text
    Path("spec.yaml").write_text(text, encoding="utf-8")
    if "E604" in expected:
        Path("run").mkdir()
        Path("run/notes.txt").write_text("mine")
    with pytest.raises(SpecError) as caught:
        train(load("spec.yaml"), Path("run"), device=device, quiet=True)
    assert str(caught.value) == expected
