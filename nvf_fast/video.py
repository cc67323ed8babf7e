"""Frames of videos, folders of images and cameras, and annotated videos."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from nvf_fast.image_files import image_files, read_image
from nvf_fast.runtime.arguments import check_number
from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import read_path

FRAME_RATE = 30.0  # Hz, of a folder of images
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")  # of annotated videos; .avi has no times of frames
TICK = Fraction(1, 90_000)  # s, unit of their times
CAMERA = "camera:"  # and its number
SILENCE = 10.0  # s, after which a camera is considered disconnected
EXPECTED = f"expected a video file, a folder of images or {CAMERA}0"


class Frame(NamedTuple):
    """One frame: its time in s, and its image (H, W, 3) uint8 RGB."""

    time: float
    image: np.ndarray


Damaged = Callable[[float, Exception], None]


def read_frames(
    source: Path | str, frame_rate: float = FRAME_RATE, damaged: Damaged | None = None
) -> Iterator[Frame]:
    """Read frames one by one.

    Args:
        source: a video file; a folder of images, in the order of their names; or "camera:0", the first
            camera, whose frames are dropped while the last one is processed.
        frame_rate: Hz, of a folder.
        damaged: function called with the time in s and the error of each unreadable frame of a file or a
            folder, which is then skipped; None raises the error.

    Raises:
        OSError: the source is missing, contains no readable frame, or is or becomes unreadable.
        ValueError: a folder contains no images, or its frame rate is not positive and finite.
        TypeError: the frame rate is not a number.
        ImportError: a video or a camera needs PyAV, which the extra `video` installs.
    """
    check_number("frame_rate", frame_rate)
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate must be a positive number of Hz, got {frame_rate}")
    if str(source).startswith(CAMERA):
        yield from _camera_frames(str(source)[len(CAMERA) :])
    elif read_path("source", source).is_dir():
        for index, path in enumerate(image_files(Path(source))):
            try:
                image = read_image(path)
            except (OSError, ValueError) as error:
                if damaged is None:
                    raise
                damaged(index / frame_rate, error)
                continue
            yield Frame(index / frame_rate, image)
    else:
        yield from _video_frames(Path(source), damaged)


def _video_frames(path: Path, damaged: Damaged | None) -> Iterator[Frame]:
    with _open(path) as container, _damages(path):
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        step = 1 / float(stream.average_rate or FRAME_RATE)
        before, whole = -step, False
        failures = list[tuple[float, OSError]]()  # before the first whole frame: a text also yields packets
        cut_off = set[int | None]()
        for packet in container.demux(stream):
            if packet.is_corrupt:  # as the last one of a file that was cut off
                cut_off.add(packet.pts)
            found: list[tuple[float | None, np.ndarray | OSError]] = []
            try:
                with _damages(path):
                    for frame in packet.decode():
                        concealed = frame.is_corrupt or frame.pts in cut_off  # by repeated or grey pixels
                        image = OSError(f"{path}: a damaged frame") if concealed else _upright(frame)
                        found.append((frame.time, image))
            except OSError as error:
                found.append((None, error))
            for when, image in found:
                if when is None or when <= before:  # some files have no times, or repeat them
                    when = before + step
                before = when
                if isinstance(image, OSError):
                    if damaged is None:
                        raise image
                    failures.append((when, image))
                else:
                    whole = True
                while whole and failures and damaged is not None:
                    damaged(*failures.pop(0))
                if not isinstance(image, OSError):
                    yield Frame(when, image)
        if not whole:
            raise OSError(f"{path}: no frame can be read; {EXPECTED}")


def _camera_frames(number: str) -> Iterator[Frame]:
    if not number.isdecimal():
        raise ValueError(f'a camera is "{CAMERA}0" or another number, got {CAMERA + number!r}')
    device = Path(f"/dev/video{number}")
    if not device.exists():
        raise OSError(f"{device}: no such camera (cameras are read on Linux only)")
    with _open(device, format="v4l2") as container:
        yield from _newest(container.decode(video=0), device)


def _newest(frames: Iterator[Any], device: Path) -> Iterator[Frame]:
    """The newest frame of a camera whenever one is needed; a thread receives all, so that none is late."""
    start, closed, newest = time.monotonic(), threading.Event(), queue.Queue[Any](1)

    def receive() -> None:
        last: OSError | None = None
        try:
            with _damages(device):
                for frame in frames:
                    if closed.is_set():
                        return
                    replace((time.monotonic() - start, frame))
        except OSError as error:
            last = error
        replace(last)

    def replace(item: tuple[float, Any] | OSError | None) -> None:
        with suppress(queue.Empty):
            newest.get_nowait()
        newest.put(item)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        while (item := newest.get(timeout=SILENCE)) is not None:
            if isinstance(item, OSError):
                raise item
            yield Frame(item[0], _upright(item[1]))
    except queue.Empty:
        raise OSError(f"{device}: the camera sent no frame for {SILENCE:g} s") from None
    finally:
        closed.set()
        thread.join(SILENCE)


def _open(path: Path, **options: Any) -> Any:
    """A PyAV container with at least one video."""
    av = _pyav()
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        with _damages(path):
            container = av.open(str(path), **options)
    except OSError as error:
        raise OSError(f"{error}; {EXPECTED}") from error
    if not container.streams.video:
        container.close()
        raise OSError(f"{path}: holds no video; {EXPECTED}")
    return container


@contextmanager
def _damages(path: Path) -> Iterator[None]:
    """Raise the errors of a video's decoder as OSError."""
    try:
        yield
    except (_pyav().error.FFmpegError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{path}: not a readable video, or a damaged one ({reason})") from error


def _upright(frame: Any) -> np.ndarray:
    """A frame's pixels, turned as its metadata say."""
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _pyav() -> Any:
    with extra("video", "videos and cameras need PyAV"):
        import av
    return av


class VideoWriter:
    """Writer of an H.264 video whose frames keep their times, complete once it is closed.

    Args:
        path: path of the file, with one of `VIDEO_SUFFIXES`.

    Raises:
        ImportError: PyAV is not installed (`pip install nvf-fast[video]`).
        ValueError: the path has another suffix.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._av, path = _pyav(), read_path("path", path)
        self._path = path
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"a video's name must end in {', '.join(VIDEO_SUFFIXES)}, got {path}")
        self._stream: Any = None
        self._first, self._last = 0.0, -math.inf
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = self._av.open(str(path), "w")
        except (ValueError, self._av.error.FFmpegError) as error:
            raise OSError(f"{path}: cannot be written as a video ({error})") from error

    def write(self, image: np.ndarray, time: float) -> None:
        """Append a frame; sides of odd length lose a pixel, which the format requires.

        Args:
            image: (H, W, 3) uint8 RGB.
            time: s, as of `read_frames`; the video begins with its first frame.

        Raises:
            ValueError: the frame's size differs from that of the previous frames, or is below 2 x 2 px, or
                its time is not later than the previous one.
            OSError: the frame cannot be written.
        """
        height, width = (side - side % 2 for side in image.shape[:2])
        if not (height and width):
            raise ValueError(f"frames must have at least 2 x 2 px, got shape {image.shape}")
        check_number("time", time)
        if not self._last < time < math.inf:
            raise ValueError(f"time must be later than {self._last:g} s of the previous frame, got {time}")
        if self._stream is None:
            # Frames that refer to later ones would end the file before its last frames' times.
            self._stream = self._container.add_stream("libx264", options={"bf": "0"})
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.codec_context.time_base = TICK
            self._first = time
        if (self._stream.height, self._stream.width) != (height, width):
            raise ValueError(
                f"frames must have the size of the first, {self._stream.width} x {self._stream.height} px, "
                f"got {width} x {height}"
            )
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame.pts, frame.time_base, self._last = round((time - self._first) / TICK), TICK, time
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except self._av.error.FFmpegError as error:
            raise OSError(f"{self._path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file with the frames so far."""
        if self._stream is not None:
            self._mux(None)
        self._container.close()
