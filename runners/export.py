"""A trained network as a file that something else can run: weights, a PyTorch program, ONNX, or
Python that needs torch and safetensors alone."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from archspec import __version__
from archspec.dumping import dump
from compiler.base_network import BaseNetwork
from compiler.emission import CannotEmitError, emit, left_out
from compiler.resolve import resolve
from compiler.signing import signed_again
from runners.files import replacing
from runners.run_folder import identity
from runners.trained import Trained

EXAMPLES = 3
"""Samples that a program is traced with: sizes of 0 and 1 would be taken for constants."""
INSTALL = 'python -m pip install "archspec-reversible[onnx]"'


class ExportError(Exception):
    """A network that cannot be written in a format; in words."""


def metadata(trained: Trained) -> dict[str, str]:
    """What a file of a trained network says of itself: the network's name, its whole spec as YAML
    with its hash, the epoch of the weights, and the version of archspec."""
    said = {
        "name": trained.name,
        "spec": dump(trained.loaded.tree),
        "spec_hash": identity(trained.loaded.spec).spec,
        "archspec": __version__,
    }
    return said if trained.epoch is None else {**said, "epoch": str(trained.epoch)}


def write_safetensors(trained: Trained, path: Path, batch: int | None) -> None:
    """The weights, by the names that `train.start_from` takes, with `metadata`."""
    del batch  # weights are those of any
    with replacing(path) as partial:
        safetensors.torch.save_model(trained.model, str(partial), metadata(trained))


def write_torch(trained: Trained, path: Path, batch: int | None) -> None:
    """A program of `torch.export`, inputs (B, …), and behind them side inputs in their order →
    outputs (B, …), for `torch.export.load`. Raises `ExportError`."""
    program = traced(trained, batch)
    extra = {"archspec.json": json.dumps(metadata(trained))}
    with replacing(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file, extra_files=extra)


def write_onnx(trained: Trained, path: Path, batch: int | None) -> None:
    """A model with the input `inputs` (batch, …), side inputs by their names, and the output
    `outputs` (batch, …), whose weights are within the file. The first axis is called `batch` where
    it may have any size. Raises `ExportError`."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ExportError(f"ONNX needs {' and '.join(missing)}: {INSTALL}")
    assert isinstance(trained.model, BaseNetwork)
    program = traced(trained, batch)
    with _tracing():
        try:
            model = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=["inputs", *trained.model.side],
                output_names=["outputs"],
                dynamic_shapes=_of_all(trained.model, "batch") if batch is None else None,
                verbose=False,
            )
        except Exception as error:  # of what ONNX has no operation for, anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"ONNX cannot hold {trained.name}: {said}") from error
    assert model is not None
    model.model.metadata_props.update(metadata(trained))
    with replacing(path) as partial:
        model.save(str(partial), external_data=False)


def write_python(trained: Trained, path: Path, batch: int | None) -> None:
    """The network as `archspec build --emit` writes it, with a function `trained()` that reads the
    weights beside it. Raises `ExportError`."""
    del batch  # takes any
    try:
        text = emit(resolve(trained.loaded), trained.loaded.spec)
    except CannotEmitError as error:
        raise ExportError(str(error)) from None
    text = signed_again(_with_loader(text, weights_beside(path).name, _layout(trained.model)))
    with replacing(path) as code, replacing(weights_beside(path)) as partial:
        safetensors.torch.save_model(trained.model, str(partial), metadata(trained))
        code.write_text(text, encoding="utf-8", newline="\n")


def weights_beside(path: Path) -> Path:
    """The weights of a Python file."""
    return path.with_name(f"{path.stem}_weights.safetensors")


FORMATS: Mapping[str, tuple[str, Callable[[Trained, Path, int | None], None]]] = {
    "safetensors": (".safetensors", write_safetensors),
    "torch": (".pt2", write_torch),
    "onnx": (".onnx", write_onnx),
    "python": (".py", write_python),
}
"""The ending of a file, and what writes it: with `batch` for so many samples alone, where a program
is traced."""


def file_name(name: str, format: str) -> str:
    """Of the export of a network; one that Python can import, where that is what it is for."""
    ending = FORMATS[format][0]
    if format != "python":
        return f"{name}{ending}"
    plain = re.sub(r"\W", "_", name)
    return f"{plain if plain.isidentifier() and not iskeyword(plain) else f'_{plain}'}{ending}"


def written(format: str, path: Path) -> list[Path]:
    """The files that an export makes."""
    return [path, weights_beside(path)] if format == "python" else [path]


def notes(trained: Trained, format: str) -> list[str]:
    """What a file leaves out of the network, in sentences."""
    plan = resolve(trained.loaded)
    if format == "python":
        return left_out(plan)
    if format == "safetensors":
        return []
    found = []
    if exact := [stage.name for stage in plan.stages if stage.fraction_bits is not None]:
        other = " Another runtime may round to a neighbour on the grid." if format == "onnx" else ""
        found.append(
            f"the exact arithmetic of stage {', '.join(exact)} is in the file, without the check "
            f"that streams stay in its range.{other}"
        )
    recipe = trained.loaded.spec.train
    if recipe is not None and recipe.precision in ("bf16", "fp16"):
        found.append(f"the file computes in float32, and training was in {recipe.precision}")
    return found


def traced(trained: Trained, batch: int | None) -> ExportedProgram:
    """The network in evaluation as a graph, for any number of samples, or for `batch` alone. Where
    no gradient is wanted, a stage of any strategy is its update, one layer after another. Raises
    `ExportError`."""
    # In torch's own layout, which files keep; kernels that are channels last would lose it.
    network = copy.deepcopy(trained.model).to(memory_format=torch.contiguous_format)
    assert isinstance(network, BaseNetwork)
    count, axis = batch or EXAMPLES, Dim.DYNAMIC if batch is None else Dim.STATIC
    inputs = torch.zeros(count, *network.input)
    side = [torch.zeros(count, *sizes) for sizes in network.side.values()]
    module, shapes = InOrder(network) if side else network, _of_all(network, axis)
    with _tracing(), torch.no_grad():
        try:
            found = torch.export.export(
                module, (inputs, *side), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # of modules of the user's own, anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"torch.export cannot trace {trained.name}: {said}") from error
    for node in found.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, a third of a file
    return found


class InOrder(nn.Module):
    """A network whose side inputs are given behind its input, in their order: the guards of a
    program of arguments by name name what is not there (PyTorch 2.11 to 2.15)."""

    def __init__(self, network: BaseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, *side: Tensor) -> Tensor:
        """What the network makes of them."""
        found: Tensor = self.network(inputs, **dict(zip(self.network.side, side, strict=True)))
        return found


def _of_all(network: BaseNetwork, first_axis: object) -> tuple[object, ...]:
    """What holds of the first axis of the input and of each side input, as `forward` takes them."""
    of_each = {0: first_axis}
    side = tuple(of_each for _ in network.side)
    return (of_each, side) if side else (of_each,)


@contextmanager
def _tracing() -> Iterator[None]:
    """Without what PyTorch's own modules warn each other of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_LOADER = '''
# The trained weights ------------------------------------------------------------------------------

WEIGHTS = {weights}


def trained() -> {network}:
    """The network with the weights of the file beside this one, in evaluation: `pip install
    safetensors`."""
    from pathlib import Path

    from safetensors.torch import load_model

    network = {network}()
    load_model(network, Path(__file__).with_name(WEIGHTS))
    return network.to(memory_format=torch.{layout}).eval()


'''
_ALONE = "; imports torch alone.\n"
"""How an emitted text says what it needs."""
_WITH_WEIGHTS = "; imports torch, and safetensors where\n`trained` reads weights.\n"
_MAIN = 'if __name__ == "__main__":'


def _with_loader(text: str, weights: str, layout: str) -> str:
    """An emitted text with the function that reads its weights, before what it does when run."""
    assert text.count(_ALONE) == 1
    before, main, after = text.replace(_ALONE, _WITH_WEIGHTS).rpartition(_MAIN)
    found = re.search(r"self_check\((\w+)\(\)\)", after)
    assert found is not None
    loader = _LOADER.format(weights=json.dumps(weights), network=found[1], layout=layout)
    return f"{before.rstrip()}\n\n{loader}{main}{after}"


def _layout(model: nn.Module) -> str:
    """How kernels lie in memory, on which the last bits of convolutions depend."""
    kernels = [p for p in model.parameters() if p.dim() == 4]
    is_plain = all(kernel.is_contiguous() for kernel in kernels)
    return "contiguous_format" if is_plain else "channels_last"


__all__ = ["FORMATS", "ExportError", "notes", "traced", "written"]
