"""Clips of videos in files: which frames, and how they are decoded.

Frames are found by their time stamps, which are read without decoding. What is decoded begins at
the key frame before a clip and ends with the clip, and of that its own frames alone are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from archspec.augmentation import AnyAugmentation
from runners.augment import OnBatch, has_crop, on_image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov")

Start = Callable[[int], int]
"""Where a clip starts, given how many frames there are to choose from."""


def at_random(room: int) -> int:
    """Anywhere, drawn from the global generator."""
    return int(torch.randint(room, ()))


def at_centre(room: int) -> int:
    """So that as many frames are left before as after a clip."""
    return (room - 1) // 2


def clip_frames(count: int, frames: int, every: int, start: Start) -> list[int]:
    """Which of `count` frames of a video are those of a clip. The last is repeated where the clip
    is longer than the video."""
    room = max(1, count - (frames - 1) * every)
    first = start(room)
    return [min(first + i * every, count - 1) for i in range(frames)]


@dataclass(frozen=True)
class ClipDecoder:
    """Clips of videos in files, in colour or grey."""

    channels: int
    frames: int
    every: int
    start: Start
    transform: OnBatch
    """Of the frames (T, C, H, W) of a clip."""

    def __call__(self, path: str) -> Tensor:
        """Bytes (C, T, H, W). Raises OSError or ValueError."""
        import av  # an extra, and slow to import

        try:
            # Titles of many files are in no encoding that they say.
            with av.open(path, metadata_errors="ignore") as container:
                frames = self._frames(container)
        except av.FFmpegError as error:
            raise OSError(error.strerror or str(error)) from error
        pictures = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return self.transform(pictures).transpose(0, 1).contiguous()

    def _frames(self, container: InputContainer) -> list[Any]:
        """The frames of a clip as arrays (H, W, C)."""
        if not container.streams.video:
            raise ValueError("it has no pictures")
        stream = container.streams.video[0]
        stamps = time_stamps(container, stream)
        if not stamps:
            raise ValueError("it has no frames")
        places = clip_frames(len(stamps), self.frames, self.every, self.start)
        wanted = [stamps[place] for place in places]
        shown = frames_at(container, stream, wanted, since=min(0, stamps[0]))
        return [self._array(frame) for frame in shown]

    def _array(self, frame: VideoFrame) -> Any:
        array = frame.to_ndarray(format="gray" if self.channels == 1 else "rgb24")
        return array[:, :, None] if self.channels == 1 else array


def time_stamps(container: InputContainer, stream: VideoStream) -> list[int]:
    """When each frame is shown, in order, in units of the stream. Nothing is decoded."""
    # An AVI may say of a packet only when it is decoded, which is then as good.
    stamps = (p.dts if p.pts is None else p.pts for p in container.demux(stream) if p.size)
    return sorted(stamp for stamp in stamps if stamp is not None)


def frames_at(
    container: InputContainer, stream: VideoStream, wanted: Sequence[int], since: int
) -> list[VideoFrame]:
    """What is shown at each of some times, which do not fall, of a video that begins at `since` or
    later."""
    frames = _decoded(container, stream, wanted[0])
    last = next(frames, None)
    # An AVI finds key frames by when they are decoded, and may then begin too late.
    if last is None or _shown(last) > wanted[0]:
        frames = _decoded(container, stream, since)
        last = next(frames, None)
    if last is None:
        raise ValueError("none of its frames can be decoded")
    found: list[VideoFrame] = []
    while len(found) < len(wanted):
        frame = next(frames, None)
        ended = math.inf if frame is None else _shown(frame)
        found += [last for time in wanted[len(found) :] if time < ended]
        last = frame or last
    return found


def _decoded(container: InputContainer, stream: VideoStream, since: int) -> Iterator[VideoFrame]:
    """Frames from the key frame before a time on."""
    container.seek(since, stream=stream)
    return (frame for frame in container.decode(stream) if frame.pts is not None)


def _shown(frame: VideoFrame) -> int:
    assert frame.pts is not None
    return frame.pts


# Clips as augmentation sees them ------------------------------------------------------------------


def clip_augmentation(augmentations: Sequence[AnyAugmentation], size: tuple[int, int]) -> OnBatch:
    """A function from frames (T, C, H, W) of any size to frames of `size`, augmented: the same in
    all frames."""
    first = [] if has_crop(augmentations) else [Covering(size)]
    return v2.Compose([*first, *(on_image(each, size) for each in augmentations)])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Covering:
    """Crops the centre of frames in the proportions of a size, and resizes it to that."""

    size: tuple[int, int]

    def __call__(self, frames: Tensor) -> Tensor:
        height, width = self.size
        scale = min(frames.shape[-2] / height, frames.shape[-1] / width)
        crop = [max(1, round(height * scale)), max(1, round(width * scale))]
        top, left = ((frames.shape[i - 2] - crop[i]) // 2 for i in (0, 1))
        return F.resized_crop(  # type: ignore[no-any-return]
            frames,
            top,
            left,
            *crop,
            size=[height, width],
            interpolation=v2.InterpolationMode.BICUBIC,
        )
