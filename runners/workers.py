"""Processes that read batches ahead of the one that trains."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from runners.errors import TrainingError
from runners.samples import HeldImages, Read, Samples

WORTH_WORKERS = 2000
"""Samples."""
MOST_WORKERS = 8


@dataclass(frozen=True)
class SeededBatch:
    """A batch, and what the draws in reading it begin with."""

    place: int
    """Of its samples among several kinds."""
    seed: int
    indices: list[int]


@dataclass(frozen=True)
class Seeded:
    """Several kinds of samples, of which each batch is read with generators of its own."""

    kinds: tuple[Samples, ...]

    def __getitems__(self, batch: SeededBatch) -> Read | TrainingError:
        before = torch.get_rng_state()
        try:
            # And no GPU's generator, which other layers draw from.
            torch.default_generator.manual_seed(batch.seed)
            return self.kinds[batch.place].__getitems__(batch.indices)
        except TrainingError as error:  # raised in a worker, it would be a traceback
            return error
        finally:
            torch.set_rng_state(before)


class Workers:
    """The processes that read some kinds of samples. The first pass that is worth them starts them,
    and later passes, over samples of any of these kinds, find them there: where processes are not
    forked, each takes seconds to start. One pass is over, or given up, before the next begins."""

    def __init__(self, kinds: Sequence[Samples], count: int | None, size: int = 0) -> None:
        # Samples in memory are read where they are, and need not go to other processes.
        self.kinds = tuple(kind for kind in kinds if not isinstance(kind, HeldImages))
        self.count = count
        """None: as many as are worth it for `size` samples in a pass."""
        self.size = size
        self._batches: list[SeededBatch] = []
        self._kept: DataLoader[Any] | None = None

    def read(
        self, samples: Samples, batches: Sequence[tuple[int, list[int]]], *, pinned: bool
    ) -> Iterator[Read | TrainingError]:
        """Batches of one of these kinds of samples, each given as its seed and its indices."""
        place = next(i for i, kind in enumerate(self.kinds) if kind is samples)
        self._batches[:] = [SeededBatch(place, seed, indices) for seed, indices in batches]
        if self._kept is not None:
            return iter(self._kept)
        count = enough_workers(self.size) if self.count is None else self.count
        loader: DataLoader[Any] = DataLoader(
            Seeded(self.kinds),  # type: ignore[arg-type]  # read by __getitems__ alone
            batch_sampler=self._batches,  # type: ignore[arg-type]  # goes there as it is
            collate_fn=_as_read,
            worker_init_fn=_deaf,
            num_workers=count,
            persistent_workers=count > 0,
            generator=torch.Generator(),  # else the loader draws from the global one
            pin_memory=pinned,
        )
        if count:
            self._kept = loader
        return iter(loader)

    def close(self) -> None:
        """End the processes. Without it an error that ends a run would keep them: it keeps the
        frames in which they are read, and when the interpreter exits it waits for them."""
        kept, self._kept = self._kept, None
        iterator: Any = getattr(kept, "_iterator", None)
        if iterator is None:
            return
        iterator._shutdown_workers()
        for process in iterator._workers:
            if process.is_alive():  # it is deaf to being asked
                process.kill()
                process.join()


def enough_workers(count: int) -> int:
    """Processes to read so many samples with: each takes seconds to start, where it is not forked,
    and several trainings may share a machine."""
    if count < WORTH_WORKERS:
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, cores() // here))


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _deaf(worker: int) -> None:
    """A terminal, or a scheduler, signals all processes of a run: the one that trains still needs
    the batches of its step, and tells the others when to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_read(batch: Any) -> Any:
    """Batches are read whole, so there is nothing to put together."""
    return batch
