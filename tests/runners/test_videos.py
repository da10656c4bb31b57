"""Folders of videos: which frames make a clip, how it is augmented, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archspec.augmentation import CutMix, MixUp
from archspec.diagnostics import SpecError
from archspec.loading import Loaded, load
from runners import videos
from runners.data import Data, Reading, in_order, open_data, read, shuffled
from runners.errors import TrainingError
from runners.mixing import erase, mixing
from runners.videos import ClipDecoder, Covering, at_centre, at_random, clip_frames

Tiny = Callable[..., Loaded]
CPU = torch.device("cpu")
STEP = 5
"""In brightness from one frame to the next: a frame's number, through any codec."""


def write_video(
    path: Path, frames: Sequence[Sequence[float] | float], codec: str = "mpeg4", **options: str
) -> None:
    """A video of 32×24 whose frames have one colour each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.bit_rate = 8_000_000
        for colour in frames:
            picture = np.empty((24, 32, 3), np.uint8)
            picture[:] = np.broadcast_to(colour, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def numbered(count: int) -> list[float]:
    return [10.0 + STEP * number for number in range(count)]


def numbers(clip: Tensor) -> list[int]:
    """Those of the frames of a clip (C, T, H, W)."""
    brightness = clip.float().mean(dim=(0, 2, 3))
    return [round((value - 10) / STEP) for value in brightness.tolist()]


def decoder(frames: int, every: int, start: Callable[[int], int] = at_centre) -> ClipDecoder:
    return ClipDecoder(3, frames, every, start, Covering((8, 8)))


# Frames -------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**16))
def test_a_clip_is_evenly_spaced_and_within_its_video(
    count: int, frames: int, every: int, seed: int
) -> None:
    torch.manual_seed(seed)
    for start in (at_random, at_centre):
        places = clip_frames(count, frames, every, start)
        assert len(places) == frames
        assert 0 <= places[0] <= places[-1] < count
        span = (frames - 1) * every
        if span < count:
            assert [b - a for a, b in pairwise(places)] == [every] * (frames - 1)
        else:
            assert places == [min(i * every, count - 1) for i in range(frames)]
    left, right = places[0], count - 1 - places[-1]
    assert right - left in (0, 1) or span >= count


def test_a_random_clip_begins_anywhere() -> None:
    starts = {clip_frames(20, 4, 4, at_random)[0] for _ in range(300)}
    assert starts == set(range(8))


CODECS = [
    ("mp4", "mpeg4", {}),
    ("mp4", "mpeg4", {"bf": "2"}),
    ("mov", "libx264", {"g": "10", "bf": "3"}),  # key frames, and frames out of order
    ("mkv", "libx264", {"g": "7"}),
    ("mkv", "ffv1", {}),
    ("avi", "mpeg4", {"g": "6"}),
    ("avi", "mpeg4", {"g": "9", "bf": "2"}),
    ("webm", "libvpx-vp9", {"g": "9"}),
]


@pytest.mark.parametrize(("extension", "codec", "options"), CODECS)
def test_a_clip_has_the_frames_that_it_should(
    tmp_path: Path, extension: str, codec: str, options: dict[str, str]
) -> None:
    path = tmp_path / f"numbered.{extension}"
    write_video(path, numbered(40), codec, **options)
    for first in (0, 1, 6, 11, 19, 27, 30, 39):
        clip = decoder(4, 3, lambda _, first=first: first)(str(path))
        assert numbers(clip) == [min(first + 3 * i, 39) for i in range(4)]
    clip = decoder(4, 3)(str(path))
    assert clip.shape == (3, 4, 8, 8)
    assert clip.dtype == torch.uint8
    assert numbers(clip) == [15, 18, 21, 24]


def test_the_last_frame_of_a_short_video_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_video(path, numbered(5))
    assert numbers(decoder(6, 2)(str(path))) == [0, 2, 4, 4, 4, 4]
    assert numbers(decoder(6, 2, at_random)(str(path))) == [0, 2, 4, 4, 4, 4]
    write_video(path, numbered(1))
    assert numbers(decoder(3, 4)(str(path))) == [0, 0, 0]


def test_what_lies_beyond_a_clip_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, numbered(48) * 4, "libx264", g="12", bf="0")
    decoded, whole = [], videos._decoded

    def counted(*arguments: Any) -> Iterator[av.VideoFrame]:
        for frame in whole(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(videos, "_decoded", counted)
    clip = decoder(4, 2, lambda _: 100)(str(path))
    assert numbers(clip) == [4, 6, 8, 10]
    assert 4 <= len(decoded) <= 12 + 8


def test_a_frame_is_cropped_at_its_centre_and_resized() -> None:
    frames = torch.zeros(2, 3, 20, 60, dtype=torch.uint8)
    frames[:, :, :, 20:40] = 200
    assert (Covering((10, 10))(frames) > 150).all()
    upright = frames.transpose(2, 3)
    assert (Covering((10, 10))(upright) > 150).all()
    assert Covering((40, 20))(frames).shape == (2, 3, 40, 20)


# Folders ------------------------------------------------------------------------------------------

RED, GREEN = (220, 20, 20), (20, 220, 20)


def write_folder(root: Path, count: int = 6, length: int = 12) -> Path:
    for part, many in (("train", count), ("test", 2)):
        for name, colour in (("green", GREEN), ("red", RED)):
            for number in range(many):
                extension = ("mp4", "avi", "mkv")[number % 3]
                write_video(root / part / name / f"{number}.{extension}", [colour] * length)
    return root


def video_spec(tiny: Tiny, root: Path, channels: int = 3, **settings: object) -> Loaded:
    """For clips of 4×12×16."""
    return tiny(
        input={"video": [channels, 4, 12, 16]},
        stem=[
            {"conv": {"out": 8, "kernel": [3, 5, 5], "stride": [2, 4, 4]}},
            "tokens",
            {"position": "learned"},
        ],
        data={"video_folder": {"path": str(root), "every": 2, "validation": 0.25, **settings}},
        task={"classify": {"classes": 2}},
    )


def opened(loaded: Loaded) -> Data:
    assert loaded.spec.data is not None
    return open_data(loaded, loaded.spec.data, 0)


def refusal(loaded: Loaded) -> str:
    with pytest.raises(SpecError) as caught:
        opened(loaded)
    return str(caught.value)


def test_a_video_folder_is_read_and_normalised(tiny: Tiny, tmp_path: Path) -> None:
    data = opened(video_spec(tiny, write_folder(tmp_path)))
    assert (len(data.training), len(data.validation), len(data.test)) == (9, 3, 4)
    clips, labels = next(iter(read(data.test, in_order(data.test, 4), CPU)))
    assert clips.shape == (4, 3, 4, 12, 16)
    assert labels.tolist() == [0, 0, 1, 1]
    means = clips.mean(dim=(2, 3, 4))
    torch.testing.assert_close(means[0, 1].item(), (220 / 255 - 0.456) / 0.224, atol=0.1, rtol=0)
    torch.testing.assert_close(means[3, 0].item(), (220 / 255 - 0.485) / 0.229, atol=0.1, rtol=0)


def test_videos_are_grey_where_the_input_has_one_channel(tiny: Tiny, tmp_path: Path) -> None:
    data = opened(video_spec(tiny, write_folder(tmp_path, 4), channels=1))
    clips, _ = next(iter(read(data.test, in_order(data.test, 4), CPU)))
    assert clips.shape == (4, 1, 4, 12, 16)


AUGMENT = [
    {"random_resized_crop": 0.3},
    "horizontal_flip",
    {"rand_augment": {"operations": 2, "magnitude": 12}},
    "colour_jitter",
    {"random_affine": {"degrees": 20}},
]


@pytest.mark.parametrize("augment", [*([each] for each in AUGMENT), AUGMENT])
def test_all_frames_of_a_clip_are_augmented_alike(
    tiny: Tiny, tmp_path: Path, augment: list[object]
) -> None:
    """A video that stands still does so afterwards, and two videos differ."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    for part in ("train", "test"):
        for name in ("a", "b"):
            for number in range(4):
                path = tmp_path / part / name / f"{number}.mkv"
                path.parent.mkdir(parents=True, exist_ok=True)
                with av.open(str(path), "w") as container:
                    stream = container.add_stream("ffv1", rate=25)
                    stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv444p"
                    for _ in range(10):
                        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                        container.mux(stream.encode(frame))
                    container.mux(stream.encode())
    split = opened(video_spec(tiny, tmp_path, augment=augment)).training
    clips, _ = next(iter(read(split, shuffled(split, 6, 0, 0), CPU)))
    assert torch.equal(clips, clips[:, :, :1].expand_as(clips))
    assert len({clip.numpy().tobytes() for clip in clips}) > 1


def test_the_seed_determines_clips_whatever_reads_them(tiny: Tiny, tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    for path in tmp_path.rglob("*.*"):
        write_video(path, numbered(40))

    def epoch(workers: int, seed: int = 0) -> Tensor:
        split = opened(video_spec(tiny, tmp_path, workers=workers, augment=AUGMENT[:2])).training
        batches = shuffled(split, 3, 0, 0)
        return torch.cat([clips for clips, _ in read(split, batches, CPU, Reading(seed))])

    state = torch.get_rng_state()
    once = epoch(0)
    assert torch.equal(once, epoch(2))
    assert not torch.equal(once, epoch(0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_video_is_passed_over_and_named(tiny: Tiny, tmp_path: Path, workers: int) -> None:
    damaged = write_folder(tmp_path, 4) / "test" / "green" / "0.mp4"
    damaged.write_bytes(damaged.read_bytes()[:200])
    split = opened(video_spec(tiny, tmp_path, workers=workers)).test
    met: dict[str, str] = {}
    batches = read(split, in_order(split, 4), CPU, passed_over=met.update)
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 1]]
    assert list(met) == [str(damaged)]


def test_a_damaged_video_ends_a_strict_run(tiny: Tiny, tmp_path: Path) -> None:
    damaged = write_folder(tmp_path, 4) / "test" / "green" / "0.mp4"
    damaged.write_bytes(b"not a video")
    split = opened(video_spec(tiny, tmp_path, strict=True)).test
    with pytest.raises(TrainingError, match=r"cannot read the video .*0\.mp4: "):
        list(read(split, in_order(split, 4), CPU))


def test_a_sample_stands_in_for_a_batch_of_damaged_videos(tiny: Tiny, tmp_path: Path) -> None:
    for file in (write_folder(tmp_path, 4) / "test" / "green").iterdir():
        file.write_bytes(b"")
    split = opened(video_spec(tiny, tmp_path)).test
    found = [labels.tolist() for _, labels in read(split, in_order(split, 2), CPU)]
    assert found == [[1], [1, 1]]


@pytest.mark.parametrize("extension", ["mp4", "avi", "mkv"])
def test_no_damage_is_a_crash(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"damaged.{extension}"
    write_video(path, numbered(30))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        content = bytearray(whole[: generator.integers(1, len(whole))])
        for place in generator.integers(0, len(content), generator.integers(0, 20)):
            content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            assert decoder(4, 2)(str(path)).shape == (3, 4, 8, 8)
            outcomes.add("read")
        except (OSError, ValueError):
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_sound_without_pictures_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="it has no pictures"):
        decoder(2, 1)(str(path))


def test_folders_and_inputs_that_do_not_fit_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    text = refusal(video_spec(tiny, root))
    assert f"error[E601] there is no folder {root / 'train'}" in text
    assert "videos are looked for in train/<class>/*" in text
    assert "--set data.video_folder.path=FOLDER" in text
    write_folder(root, 4)
    text = refusal(tiny(data={"video_folder": str(root)}, task={"classify": {"classes": 2}}))
    assert "error[E602] the data set video_folder holds videos, and the input is image" in text
    text = refusal(video_spec(tiny, root, channels=2))
    assert "error[E602] files are read in 1 channel (grey) or 3, and the input has 2" in text
    text = refusal(video_spec(tiny, root, std=[0.1]))
    assert "`std` needs one positive number for each of 3 channels" in text
    write_video(root / "train" / "blue" / "0.mp4", [0])
    assert "test lacks the classes of train" in refusal(video_spec(tiny, root))
    write_video(root / "test" / "blue" / "0.mp4", [0])
    text = refusal(video_spec(tiny, root))
    assert "error[E602] video_folder has 3 classes, and the task 2" in text
    (root / "test" / "blue" / "0.mp4").rename(root / "test" / "blue" / "0.txt")
    assert "error[E601] cannot read" in refusal(video_spec(tiny, root))


def test_the_shipped_video_network_asks_for_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refusal(load("rev_mvit_b_video"))
    assert "rev_mvit_b_video.yaml:" in text
    assert f"error[E601] there is no folder {Path('data/kinetics400/train')}" in text


def test_videos_without_their_decoder_are_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.datasets.find_spec", lambda _: None)
    text = refusal(video_spec(tiny, write_folder(tmp_path, 4)))
    assert "error[E601] videos are decoded by PyAV, which is not installed" in text
    assert "pip install av" in text


# After normalising --------------------------------------------------------------------------------


def test_a_clip_is_erased_in_one_place_of_all_its_frames() -> None:
    torch.manual_seed(0)
    clips = torch.full((50, 3, 4, 12, 16), 7.0)
    changed = erase(clips, 0.5) != clips
    chosen = changed.flatten(1).any(1)
    assert 10 < int(chosen.sum()) < 40
    assert torch.equal(changed, changed[:, :1, :1].expand_as(changed))


@pytest.mark.parametrize("kind", [MixUp(), CutMix()])
def test_clips_are_mixed_as_their_labels_are(kind: MixUp | CutMix) -> None:
    torch.manual_seed(0)
    clips = torch.eye(4)[:, :, None, None, None].expand(4, 4, 3, 16, 16).contiguous()
    mixed, shares = mixing([kind], 4)(clips, torch.arange(4))
    assert type(mixed) is Tensor
    torch.testing.assert_close(mixed.mean((2, 3, 4)), shares, atol=1e-6, rtol=0)
    assert torch.equal(mixed, mixed[:, :, :1].expand_as(mixed))


# Training -----------------------------------------------------------------------------------------


SPEC = """\
archspec: 1
name: brightening
summary: Which way videos brighten
input: {video: [3, 4, 12, 16]}
stem:
  - conv: {out: 16, kernel: [3, 5, 5], stride: [2, 4, 4]}
  - tokens
  - position: learned
stages:
  trunk:
    depth: 2
    coupling: additive
    functions:
      F: [layer_norm, attention: {heads: 2}]
      G: [layer_norm, mlp: 2]
head: [layer_norm, pool: mean, linear: classes]
task: {classify: 2}
data:
  video_folder:
    path: videos
    every: 3
    validation: 0.25
    augment: [horizontal_flip, mixup: 0.2]
train: {epochs: 6, batch: 8, learning_rate: 3e-3, warmup: 1, clip: 1.0}
"""


def test_a_network_learns_which_way_videos_brighten(tmp_path: Path) -> None:
    """A frame alone does not tell: their order has to arrive."""
    generator = np.random.default_rng(0)
    for part, many in (("train", 24), ("test", 8)):
        for number in range(many):
            first = generator.uniform(20, 80)
            rising = [first + 8 * i for i in range(14)]
            for name, frames in (("rising", rising), ("falling", rising[::-1])):
                write_video(tmp_path / "videos" / part / name / f"{number}.mp4", frames)
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    command = [sys.executable, "-m", "archspec", "train", "spec.yaml", "--device", "cpu",
               "--output", "run"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["test_accuracy"] > 0.9
