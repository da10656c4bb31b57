"""Data sets as the spec asks for them: found, checked, split, read."""

from __future__ import annotations

import errno
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from archspec.diagnostics import SpecError
from archspec.loading import Loaded
from runners.data import (
    Data,
    Reading,
    in_order,
    open_data,
    read,
    shuffled,
)
from runners.errors import TrainingError
from runners.samples import FileImages, HeldImages, ImageDecoder
from runners.unreadable import passed_over
from runners.workers import Seeded, SeededBatch, cores, enough_workers

Tiny = Callable[..., Loaded]
CPU = torch.device("cpu")


def opened(loaded: Loaded, seed: int = 0) -> Data:
    assert loaded.spec.data is not None
    return open_data(loaded, loaded.spec.data, seed)


def refusal(loaded: Loaded) -> str:
    with pytest.raises(SpecError) as caught:
        opened(loaded)
    return str(caught.value)


def test_digits_are_split_without_overlap_and_by_class(tiny: Tiny) -> None:
    data = opened(tiny())
    assert (len(data.training), len(data.validation), len(data.test)) == (1297, 145, 355)
    # Training and validation are cut from one set by index; the test set is another.
    assert not set(data.training.indices.tolist()) & set(data.validation.indices.tolist())
    assert data.training.samples is data.validation.samples
    for split, low, high in ((data.validation, 13, 16), (data.test, 34, 37)):
        counts = split.samples.labels[split.indices].bincount()
        assert low <= counts.min() <= counts.max() <= high
    trained = {image.numpy().tobytes() for image in data.training.samples.images}  # type: ignore[attr-defined]
    assert not trained & {image.numpy().tobytes() for image in data.test.samples.images}  # type: ignore[attr-defined]


def test_the_seed_determines_the_validation_split_and_not_the_test_set(tiny: Tiny) -> None:
    first, again, other = opened(tiny(), 1), opened(tiny(), 1), opened(tiny(), 2)
    assert torch.equal(first.validation.indices, again.validation.indices)
    assert not torch.equal(first.validation.indices, other.validation.indices)
    assert torch.equal(first.test.samples.labels, other.test.samples.labels)


def test_digits_are_normalised(tiny: Tiny) -> None:
    split = opened(tiny()).validation
    images = torch.cat([images for images, _ in read(split, in_order(split, 64), CPU)])
    assert images.shape == (145, 1, 8, 8)
    assert images.mean().abs() < 0.05
    assert (images.std() - 1).abs() < 0.05


def test_an_epoch_has_its_own_order_and_full_batches(tiny: Tiny) -> None:
    split = opened(tiny()).training
    first, again = shuffled(split, 64, 0, 0), shuffled(split, 64, 0, 0)
    assert first == again
    assert first != shuffled(split, 64, 0, 1)
    assert first != shuffled(split, 64, 1, 0)
    assert {len(batch) for batch in first} == {64}
    seen = [index for batch in first for index in batch]
    assert len(set(seen)) == len(seen) == 1297 // 64 * 64
    assert set(seen) <= set(split.indices.tolist())


def test_a_batch_larger_than_the_split_is_all_of_it(tiny: Tiny) -> None:
    split = opened(tiny()).training
    assert [len(batch) for batch in shuffled(split, 5000, 0, 0)] == [1297]


def test_evaluation_reads_each_image_once_and_leaves_the_generator(tiny: Tiny) -> None:
    split = opened(tiny()).validation
    state = torch.get_rng_state()
    labels = torch.cat([labels for _, labels in read(split, in_order(split, 64), CPU)])
    assert torch.equal(labels, split.samples.labels[split.indices])
    assert torch.equal(torch.get_rng_state(), state)


def test_data_that_does_not_fit_the_spec_is_refused_at_once(tiny: Tiny) -> None:
    text = refusal(tiny(input={"image": [3, 8, 8]}, task={"classify": {"classes": 7}}))
    assert "error[E602] the images of digits are 1×8×8, not image 3×8×8" in text
    assert "error[E602] digits has 10 classes, and the task 7" in text
    assert "write `input: {image: [1, 8, 8]}`" in text


def test_images_for_an_input_of_tokens_are_refused(tiny: Tiny) -> None:
    text = refusal(tiny(input={"tokens": [4, 16]}, stem=[]))
    assert "E602" in text
    assert "the input is 4 tokens × 16" in text


def test_a_validation_split_too_small_for_its_classes_is_refused(tiny: Tiny) -> None:
    text = refusal(tiny("data.digits.validation=0.001"))
    assert "E602" in text
    assert "--set:1:13" in text


CIFAR = {"image": [3, 32, 32]}


def test_absent_cifar10_is_refused_where_the_spec_says_so(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "none"
    text = refusal(tiny(input=CIFAR, data={"cifar10": {"root": str(root), "download": False}}))
    assert f"error[E601] CIFAR-10 is not in {root}" in text
    assert not root.exists()


def test_cifar10_that_cannot_be_downloaded_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    text = refusal(tiny(input=CIFAR, data={"cifar10": str(tmp_path)}))
    assert "error[E601]" in text
    assert "cannot be downloaded: no route to host" in text


def test_cifar10_is_read_in_its_own_format(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few images in files of the real format; torchvision knows the real files by their checksums.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.zeros((20, 3, 1024), np.uint8)
    pixels[:, 0] = 255  # red
    batch = {"data": pixels.reshape(20, 3072), "labels": [*range(10)] * 2}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [str(i) for i in range(10)]})
    )

    augment = ["horizontal_flip", {"random_crop": 4}]
    data = opened(tiny(input=CIFAR, data={"cifar10": {"root": str(tmp_path), "augment": augment}}))
    assert (len(data.training), len(data.validation), len(data.test)) == (90, 10, 20)
    images, labels = next(iter(read(data.test, in_order(data.test, 20), CPU)))
    assert labels.tolist() == [*range(10)] * 2
    red = (1 - 0.4914) / 0.2470
    torch.testing.assert_close(images[:, 0], torch.full((20, 32, 32), red), atol=1e-5, rtol=0)
    black = (0 - 0.4914) / 0.2470
    images, _ = next(iter(read(data.training, shuffled(data.training, 90, 0, 0), CPU)))
    assert images.min(dim=0).values[0, 0, 0].item() == pytest.approx(black)  # a crop's padding


# Image folders ------------------------------------------------------------------------------------


def write_folder(root: Path, tests: str = "test", count: int = 8) -> Path:
    """Red and green pictures of several sizes and formats."""
    for part, many in (("train", count), (tests, 3)):
        for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(many):
                picture = Image.new("RGB", (12 + i, 20 - i), colour)
                picture = picture.convert("P") if i == 1 else picture
                picture.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


def folder_spec(tiny: Tiny, root: Path, channels: int = 3, **settings: object) -> Loaded:
    return tiny(
        input={"image": [channels, 8, 10]},
        stem=[{"patch_embed": {"patch": 2, "width": 16}}],
        data={"image_folder": {"path": str(root), "validation": 0.25, **settings}},
        task={"classify": {"classes": 2}},
    )


@pytest.mark.parametrize("tests", ["test", "val"])
def test_an_image_folder_is_read_resized_and_normalised(
    tiny: Tiny, tmp_path: Path, tests: str
) -> None:
    data = opened(folder_spec(tiny, write_folder(tmp_path, tests)))
    assert (len(data.training), len(data.validation), len(data.test)) == (12, 4, 6)
    images, labels = next(iter(read(data.test, in_order(data.test, 6), CPU)))
    assert images.shape == (6, 3, 8, 10)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    # Green comes first in the alphabet: its second channel is the brightest.
    assert images.mean(dim=(2, 3)).argmax(dim=1).tolist() == [1, 1, 1, 0, 0, 0]
    expected = (250 / 255 - 0.456) / 0.224
    assert images[0, 1].mean().item() == pytest.approx(expected, abs=0.05)


def test_an_image_folder_is_grey_where_the_input_has_one_channel(
    tiny: Tiny, tmp_path: Path
) -> None:
    data = opened(folder_spec(tiny, write_folder(tmp_path), channels=1))
    images, _ = next(iter(read(data.test, in_order(data.test, 6), CPU)))
    assert images.shape == (6, 1, 8, 10)


def test_only_training_images_of_a_folder_are_augmented(tiny: Tiny, tmp_path: Path) -> None:
    augment = [{"random_resized_crop": 0.5}, "horizontal_flip"]
    data = opened(folder_spec(tiny, write_folder(tmp_path), augment=augment))
    assert "RandomResizedCrop" in str(data.training.samples)
    assert "Random" not in str(data.validation.samples)
    assert "Random" not in str(data.test.samples)


def test_workers_read_the_same_images_each_time(tiny: Tiny, tmp_path: Path) -> None:
    augment = [{"random_resized_crop": 0.3}]
    loaded = folder_spec(tiny, write_folder(tmp_path), augment=augment, workers=2)
    split = opened(loaded).training

    def epoch(number: int) -> torch.Tensor:
        batches = shuffled(split, 4, 0, number)
        return torch.cat([images for images, _ in read(split, batches, CPU, Reading(0, number))])

    state = torch.get_rng_state()
    assert torch.equal(epoch(1), epoch(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_images_in_a_place_of_their_own_are_used(tiny: Tiny, tmp_path: Path) -> None:
    """Beside a test set; hidden folders, such as those of notebooks, are no classes."""
    root = write_folder(tmp_path)
    shutil.copytree(root / "test", root / "val")
    for split in ("train", "val", "test"):
        (root / split / ".ipynb_checkpoints").mkdir()
    next((root / "val" / "green").iterdir()).unlink()
    data = opened(folder_spec(tiny, root))
    assert (len(data.training), len(data.validation), len(data.test)) == (16, 5, 6)
    _, labels = next(iter(read(data.validation, in_order(data.validation, 6), CPU)))
    assert labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        ("no folder", "error[E601] there is no folder"),
        ("no tests", "test (or val)"),
        ("empty class", "error[E601] cannot read"),
        ("odd class", "test lacks the classes of train blue"),
        ("classes", "error[E602] image_folder has 3 classes, and the task 2"),
    ],
)
def test_broken_image_folders_are_refused(
    tiny: Tiny, tmp_path: Path, break_it: str, expected: str
) -> None:
    root = tmp_path / "images"
    if break_it != "no folder":
        write_folder(root, "elsewhere" if break_it == "no tests" else "test")
    if break_it in ("empty class", "odd class", "classes"):
        (root / "train" / "blue").mkdir()
    if break_it in ("odd class", "classes"):
        Image.new("RGB", (8, 8)).save(root / "train" / "blue" / "0.png")
    if break_it == "classes":
        (root / "test" / "blue").mkdir()
        Image.new("RGB", (8, 8)).save(root / "test" / "blue" / "0.png")
    assert expected in refusal(folder_spec(tiny, root))


def test_statistics_need_a_number_for_each_channel(tiny: Tiny, tmp_path: Path) -> None:
    loaded = folder_spec(tiny, write_folder(tmp_path), mean=[0.5], std=[0.2, 0.2, 0.0])
    text = refusal(loaded)
    assert "`mean` needs one number for each of 3 channels" in text
    assert "`std` needs one positive number for each of 3 channels" in text


def test_a_damaged_image_ends_a_strict_run(tiny: Tiny, tmp_path: Path) -> None:
    damaged = write_folder(tmp_path) / "test" / "green" / "0.jpg"
    damaged.write_bytes(b"not an image")
    split = opened(folder_spec(tiny, tmp_path, strict=True)).test
    with pytest.raises(TrainingError, match=r"cannot read the image .*0\.jpg: "):
        list(read(split, in_order(split, 6), CPU))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_passed_over_and_named(tiny: Tiny, tmp_path: Path, workers: int) -> None:
    damaged = write_folder(tmp_path) / "test" / "green" / "0.jpg"
    damaged.write_bytes(b"not an image")
    split = opened(folder_spec(tiny, tmp_path, workers=workers)).test
    met: dict[str, str] = {}
    batches = read(split, in_order(split, 4), CPU, passed_over=met.update)
    labels = [labels.tolist() for _, labels in batches]
    assert labels == [[0, 0, 1], [1, 1]]
    assert list(met) == [str(damaged)]
    assert "cannot identify" in met[str(damaged)]


def test_a_sample_stands_in_for_a_batch_of_damaged_images(tiny: Tiny, tmp_path: Path) -> None:
    """So that steps are counted alike; but not where nothing can be read at all."""
    root = write_folder(tmp_path)
    for file in (root / "test" / "green").iterdir():
        file.write_bytes(b"")
    split = opened(folder_spec(tiny, tmp_path)).test
    batches = [labels.tolist() for _, labels in read(split, in_order(split, 3), CPU)]
    assert batches == [[1], [1, 1, 1]]
    skipping = read(split, in_order(split, 3), CPU, Reading(may_skip=True))
    assert [labels.tolist() for _, labels in skipping] == [[1, 1, 1]]
    for file in (root / "test" / "red").iterdir():
        file.write_bytes(b"")
    with pytest.raises(TrainingError, match="no file of 6 can be read, such as "):
        list(read(split, in_order(split, 3), CPU))


def test_what_was_passed_over_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = passed_over(tmp_path / "unreadable.json")
    found.note({"a.jpg": "cut short"})
    found.note({"a.jpg": "cut short", "b.jpg": "no image"})
    assert [record.getMessage().split()[4] for record in caplog.records] == ["a.jpg,", "b.jpg,"]
    again = passed_over(tmp_path / "unreadable.json")
    assert again.known == {"a.jpg": "cut short", "b.jpg": "no image"}


# CIFAR-100, fake data ----------------------------------------------------------------------------


def test_cifar100_is_read(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 400), ("test", 100)):
        content = {
            "data": np.zeros((count, 3072), dtype=np.uint8),
            "fine_labels": [i % 100 for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list("abc")}))
    entry = {"cifar100": {"root": str(tmp_path), "download": False, "validation": 0.25}}
    loaded = tiny(input=CIFAR, data=entry, task={"classify": {"classes": 100}})
    assert "CIFAR-100 is not in" in refusal(loaded)  # its checksums are not those of the archive


def test_fake_data_is_of_any_shape(tiny: Tiny) -> None:
    entry = {
        "fake": {"samples": 40, "validation": 0.25, "tests": 7, "augment": ["horizontal_flip"]}
    }
    data = opened(tiny(input={"image": [3, 8, 8]}, data=entry))
    assert (len(data.training), len(data.validation), len(data.test)) == (30, 10, 7)
    images, labels = next(iter(read(data.test, in_order(data.test, 7), CPU)))
    assert images.shape == (7, 3, 8, 8)
    assert labels.tolist() == list(range(7))
    assert images.mean().abs() < 0.2


def test_imagenet_says_who_can_fetch_it(tiny: Tiny, tmp_path: Path) -> None:
    entry = {"imagenet": str(tmp_path / "none")}
    loaded = tiny(input=CIFAR, data=entry, task={"classify": {"classes": 1000}})
    text = refusal(loaded)
    assert "E601" in text
    assert "sign in at image-net.org" in text


def test_repeated_augmentation_repeats_images(tiny: Tiny) -> None:
    data = opened(tiny("data.digits.repeat=3"))
    order = [index for batch in shuffled(data.training, 60, 0, 0) for index in batch]
    assert len(order) == 1297 // 60 * 60
    assert len(set(order)) == len(order) // 3
    for start in range(0, len(order), 60):  # apart from each other, since neighbours are mixed
        batch = order[start : start + 60]
        assert batch[:20] == batch[20:40] == batch[40:]
        assert all(a != b for a, b in pairwise(batch))


def test_images_in_memory_are_held_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    def on(held: HeldImages, device: torch.device) -> HeldImages:
        moved.append(len(held.labels))
        return HeldImages(held.images.clone(), held.labels)

    monkeypatch.setattr(HeldImages, "on", on)
    data = opened(tiny("data.digits.augment=[]")).on(torch.device("cuda"))
    assert data.training.samples is data.validation.samples
    assert sum(moved) <= 2 * 1442 + 355


def test_errors_of_the_machine_are_not_the_files(tiny: Tiny, tmp_path: Path) -> None:
    """Else whole files are passed over while a disk is away."""
    split = opened(folder_spec(tiny, write_folder(tmp_path))).test

    def away(path: str) -> torch.Tensor:
        raise OSError(errno.EMFILE, "Too many open files")

    assert isinstance(split.samples, FileImages)
    with pytest.raises(TrainingError, match=r"cannot read .*\.jpg: Too many open files"):
        replace(split.samples, decode=away).__getitems__([0])


def test_grey_of_16_bits_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.arange(0, 2**16, 2**12, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    shallow = ImageDecoder(1, lambda image: torch.from_numpy(np.array(image)))
    assert shallow(str(tmp_path / "deep.png")).flatten().tolist() == [*range(0, 256, 16)]


def test_workers_are_as_many_as_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.workers.cores", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [enough_workers(count) for count in (10, 1999, 2000, 10**6)] == [0, 0, 8, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert enough_workers(10**6) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert enough_workers(10**6) == 1
    monkeypatch.undo()
    assert cores() >= 1


def test_workers_are_kept_from_one_pass_to_the_next(tiny: Tiny, tmp_path: Path) -> None:
    """Of any split, in turn, also after a pass that was given up."""
    root = write_folder(tmp_path)
    kept, alone = (opened(folder_spec(tiny, root, workers=count)) for count in (2, 0))
    processes = []
    for reading in (Reading(0, 1), Reading(0, 2)):
        next(iter(read(kept.training, shuffled(kept.training, 2, 0, 9), CPU, reading)))
        for ours, theirs in ((kept.training, alone.training), (kept.test, alone.test)):
            found, expected = (
                [images for images, _ in read(split, in_order(split, 4), CPU, reading)]
                for split in (ours, theirs)
            )
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))
            processes.append({child.pid for child in multiprocessing.active_children()})
    assert len(processes[0]) >= 2
    assert all(same == processes[0] for same in processes)


def test_what_is_read_can_be_sent_to_another_process(tiny: Tiny, tmp_path: Path) -> None:
    """Where processes are not forked, samples are pickled."""
    moves = ["random_resized_crop", "horizontal_flip", {"random_crop": 1}]
    augment = [*moves, {"rand_augment": {"operations": 1}}, {"colour_jitter": 0.4}]
    data = opened(folder_spec(tiny, write_folder(tmp_path), augment=augment))
    for split in (data.training, data.validation, data.test):
        batch, seeded = SeededBatch(0, 3, split.indices.tolist()), Seeded((split.samples,))
        sent = pickle.loads(pickle.dumps(seeded))
        assert torch.equal(sent.__getitems__(batch)[0], seeded.__getitems__(batch)[0])
