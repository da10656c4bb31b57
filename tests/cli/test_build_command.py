"""archspec build."""

from __future__ import annotations

import json

import pytest


def test_json_is_one_object_and_tables_go_to_standard_error(archspec) -> None:
    done = archspec("build", "momrev_vit_digits", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == 203_722
    stage = found["stages"][0]
    assert stage["inverse"] == [
        "x2 -= v2",
        "v2 = (v2 - (1 - gamma)*G(x1))/gamma",
        "x1 -= v1",
        "v1 = (v1 - (1 - gamma)*F(x2))/gamma",
    ]
    assert stage["bits_per_element"] == pytest.approx(12 * 0.152003, rel=1e-4)
    assert 1 < stage["inverse_growth"] < 20
    verification = found["verification"]
    assert verification["passed"] is True
    assert verification["roundtrip_error"] < 1e-5
    assert verification["gradient_error"] < 1e-5
    assert verification["gradient_error_float64"] < 1e-12
    assert "derived inverse" in done.stderr


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs", "with_norms"),
    [
        ("rev_vit_b", 87_335_656, 17.47, 17.49),
        ("momrev_vit_b", 87_335_656, 17.47, 17.49),
        ("vit_b", 86_567_656, 17.56, 17.58),
    ],
)
def test_published_sizes(archspec, name, parameters, giga_macs, with_norms) -> None:
    done = archspec("build", name, "--json", "--no-verify")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == parameters
    assert round(found["macs"] / 1e9, 2) == giga_macs
    assert round((found["macs"] + found["norm_operations"]) / 1e9, 2) == with_norms
    assert found["verification"] is None


def test_a_hopeless_inverse_warns_and_fails(archspec) -> None:
    done = archspec(
        "build",
        "momrev_vit_digits",
        "--set",
        "stages.trunk.constants.gamma=0.5",
        "--set",
        "stages.trunk.depth=40",
    )
    assert done.returncode == 1
    assert "warning:" in done.stdout
    assert "verification failed" in done.stdout
    assert "Traceback" not in done.stderr


def test_equations_are_not_cut_in_a_pipe(archspec, tmp_path) -> None:
    term = " + ".join(f"{n}*tanh(F(x2))" for n in range(2, 12))
    update = f"stages.trunk.update=['x1 += {term}', 'x2 += F(x1)']"
    streams = "stages.trunk.streams={x1: input, x2: input}"
    functions = "stages.trunk.functions={F: [linear: channels], G: null}"
    output = "stages.trunk.output=concat(x1, x2)"
    changes = (update, streams, functions, output, "stages.trunk.depth=1")
    settings = [part for text in changes for part in ("--set", text)]
    done = archspec("build", "rev_vit_digits", *settings, "--no-verify")
    assert done.returncode == 0, done.stderr
    assert f"x1 += {term}  x1 -= " in done.stdout
    assert "…" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 1000


def test_a_stored_network_has_nothing_to_verify(archspec) -> None:
    done = archspec("build", "vit_digits")
    assert done.returncode == 0, done.stderr
    assert "nothing to verify" in done.stdout
    assert "no inverse" in done.stdout
