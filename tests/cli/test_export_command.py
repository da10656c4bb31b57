"""archspec export: files of a run's network, where they go and what is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from finished_runs import finished_run
from test_evaluate_command import finished, own_modules, run

FILES = {
    "safetensors": ["momrev_vit_digits.safetensors"],
    "torch": ["momrev_vit_digits.pt2"],
    "onnx": ["momrev_vit_digits.onnx"],
    "python": ["momrev_vit_digits.py", "momrev_vit_digits_weights.safetensors"],
}
__all__ = ["finished", "own_modules", "run"]


def test_every_format_goes_into_the_run(invoked, run) -> None:
    for format, names in FILES.items():
        done = invoked("export", "run", "--format", format)
        assert done.returncode == 0, done.stderr
        paths = [Path("run", "export", name) for name in names]
        assert done.stdout == "".join(f"written: {path}\n" for path in paths)
        assert done.stderr == ""
    found = sorted(p.name for p in (run / "export").iterdir())
    assert found == sorted(name for names in FILES.values() for name in names)


def test_a_process_of_its_own_says_nothing_else(archspec, run, here) -> None:
    (here / "runs").mkdir()
    run.rename(here / "runs/mine")
    command = ("export", "mine", "--format", "safetensors", "--output", "some/where/my.safetensors")
    done = archspec(*command)
    written = f"written: {Path('some/where/my.safetensors')}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, written, "")


def test_a_file_is_replaced_by_force_alone(invoked, run, here) -> None:
    command = ("export", "run", "--format", "safetensors", "--output", "model.safetensors")
    (here / "model.safetensors").write_text("mine")
    done = invoked(*command)
    assert done.returncode == 2
    assert "model.safetensors: not replaced; --force does" in done.stderr
    assert (here / "model.safetensors").read_text() == "mine"
    assert invoked(*command, "--force", "--weights", "last").returncode == 0
    assert (here / "model.safetensors").stat().st_size > 1000


def test_mistakes_end_with_2_and_one_message(invoked, run, here) -> None:
    cases = {
        ("nowhere", "--format", "torch"): "error[E604] there is no folder nowhere",
        ("run",): "Missing option '--format'",
        ("run", "--format", "python", "--batch", "3"): "--batch is for programs that are traced",
        (
            "run",
            "--format",
            "onnx",
            "--output",
            "x.txt",
        ): "--format onnx ends in .onnx, found x.txt",
        ("run", "--format", "torch", "--output", "x"): "--format torch ends in .pt2, found x",
        (
            "run",
            "--format",
            "torch",
            "--output",
            "run/spec.yaml/x.pt2",
        ): "cannot write run/spec.yaml",
    }
    for arguments, message in cases.items():
        done = invoked("export", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert message in done.stderr
    assert not (run / "export").exists()


def test_exact_arithmetic_is_told(invoked, here) -> None:
    finished_run("exact", here / "run")
    done = invoked("export", "run", "--format", "torch", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "note: the exact arithmetic of stage trunk is in the file, without" in done.stderr


def test_a_module_of_the_users_own(invoked, own_modules) -> None:
    own_modules("Gain")
    allowed = ("export", "run", "--allow-modules", "mine", "--format")
    done = invoked("export", "run", "--format", "torch")
    assert done.returncode == 2
    assert "error[E404]" in done.stderr
    assert invoked(*allowed, "torch").returncode == 0
    program = torch.export.load("run/export/own.pt2").module()
    assert program(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    done = invoked(*allowed, "python")
    assert done.returncode == 2
    assert "mine.Gain" in done.stderr


def test_what_cannot_be_traced_is_told(invoked, own_modules) -> None:
    own_modules("Fickle")
    done = invoked("export", "run", "--allow-modules", "mine", "--format", "torch")
    assert done.returncode == 2
    assert "torch.export cannot trace own: " in done.stderr
    assert list(Path("run/export").iterdir()) == []
