"""Two processes find what one finds: DDP, and FSDP with functions as units. One launch of torchrun
runs every case of `distributed_worker.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

from distributed_worker import CASES
from small_networks import additive, network

import archspec

WORKER = Path(__file__).with_name("distributed_worker.py")
LIMIT = 300
"""Seconds."""

Results = dict[str, list[float | str]]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process found in each case: launched once, by whichever worker of pytest is
    first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers of one run share
    found = folder / "distributed.json"
    with FileLock(folder / "distributed.lock"):
        if not found.exists():
            found.write_text(launched(), encoding="utf-8")
    text = found.read_text(encoding="utf-8")
    assert text.startswith("{"), text
    loaded: Results = json.loads(text)
    return loaded


def launched() -> str:
    """The JSON that the worker prints, or else what went wrong."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, str(WORKER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=WORKER.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher, and the processes it started
        output, errors = process.communicate()
        return f"stopped after {LIMIT} seconds\n{output}\n{errors}"
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        return f"torchrun ended with {process.returncode}\n{output}\n{errors}"
    return lines[-1]


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, results: Results) -> None:
    """Relative errors of gradients and weights over three steps, in both processes."""
    for found in results[case]:
        assert isinstance(found, float | int), found
        assert found <= 1e-12


def test_processes_are_needed() -> None:
    with pytest.raises(RuntimeError, match="init_process_group first"):
        archspec.shard(network(additive()))
