"""Frames of videos and folders, annotated videos, and `nvf-fast track`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvf_fast import video
from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.video import VIDEO_SUFFIXES, VideoWriter, read_frames
from tests.hand_cases import hand_network


def colours(count: int, shape: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Images of one colour each, which a video codec keeps."""
    shades = np.linspace(30, 220, count).astype(np.uint8)
    return [np.full((*shape, 3), (shade, 90, 250 - shade), np.uint8) for shade in shades]


def write_video(path: Path, images: list[np.ndarray], rate: float = 25.0) -> Path:
    with VideoWriter(path) as writer:
        for index, image in enumerate(images):
            writer.write(image, index / rate)
    return path


def test_a_written_video_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("av")
    images = colours(6, (49, 65))
    path = write_video(tmp_path / "clips/hands.mp4", images)
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == pytest.approx([index / 25 for index in range(6)])
    for frame, image in zip(frames, images, strict=True):
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        # Colours are stored with fewer levels: measured 3.
        assert np.abs(frame.image.astype(int) - image[:48, :64]).max() <= 6
    with VideoWriter(tmp_path / "sizes.mp4") as writer:
        writer.write(images[0], 0)
        with pytest.raises(ValueError, match="size of the first, 64 x 48 px, got 32 x 48"):
            writer.write(images[0][:, :32], 1)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_written_frames_keep_their_times(tmp_path: Path, suffix: str) -> None:
    av = pytest.importorskip("av")
    times = [3.0, 3.01, 3.05, 3.5, 4.9, 5.0, 8.0]
    with VideoWriter(tmp_path / f"clip{suffix}") as writer:
        for time, image in zip(times, colours(7), strict=True):
            writer.write(image, time)
    frames = list(read_frames(tmp_path / f"clip{suffix}"))
    # Matroska stores whole milliseconds.
    assert [frame.time for frame in frames] == pytest.approx([time - 3 for time in times], abs=6e-4)
    with av.open(str(tmp_path / f"clip{suffix}")) as container:  # no player ends before the last frame
        assert container.duration >= 5e6


def test_refuses_invalid_times_rates_and_sizes(tmp_path: Path) -> None:
    pytest.importorskip("av")
    image = np.zeros((8, 8, 3), np.uint8)
    with VideoWriter(str(tmp_path / "clip.mp4")) as writer:
        for shape in ((1, 8, 3), (8, 1, 3)):
            with pytest.raises(ValueError, match="at least 2 x 2 px, got shape"):
                writer.write(np.zeros(shape, np.uint8), 0)
        writer.write(image, np.float32(0.5))
        for time in (0.5, 0.25, np.nan, np.inf):
            with pytest.raises(
                ValueError, match=r"time must be later than 0\.5 s of the previous frame, got"
            ):
                writer.write(image, time)
        with pytest.raises(TypeError, match="time must be a number, got '1'"):
            writer.write(image, "1")  # type: ignore[arg-type]
    for rate in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="frame_rate must be a positive number of Hz, got"):
            next(read_frames(tmp_path, rate))
    with pytest.raises(ValueError, match=r"must end in \.mp4, \.mov, \.mkv, got"):
        VideoWriter(tmp_path / "clip.avi")


def test_frames_are_turned_upright() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame = SimpleNamespace(to_ndarray=lambda format: pixels, rotation=-90)
    np.testing.assert_array_equal(video._upright(frame), np.rot90(pixels, -1))
    frame.rotation = 180
    np.testing.assert_array_equal(video._upright(frame), pixels[::-1, ::-1])


def test_reads_a_folder_in_the_order_of_its_names(tmp_path: Path) -> None:
    names = ["a1", "a2", "a10", "b-2-9", "b-2-10", "b-10-1"]
    images = colours(len(names))
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no image")
    frames = list(read_frames(tmp_path, frame_rate=10))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(6) / 10)
    np.testing.assert_array_equal(np.stack([frame.image for frame in frames]), np.stack(images))


def test_damaged_frames_are_reported_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    options = ["--fov", 60, "--checkpoint", tmp_path / "hand", "--device", "cpu"]
    (tmp_path / "frames").mkdir()
    for index, image in enumerate(colours(4, (120, 160))):
        Image.fromarray(image).save(tmp_path / f"frames/{index}.png")
    (tmp_path / "frames/1.png").write_bytes((tmp_path / "frames/1.png").read_bytes()[:60])
    for source in (tmp_path / "frames", damaged_video(tmp_path / "clip.mkv", colours(4, (120, 160)))):
        out = tmp_path / f"{source.stem}.jsonl"
        with pytest.raises(OSError, match=r"1\.png: damaged|clip\.mkv: not a readable video, or a damaged"):
            list(read_frames(source))
        rate = ["--frame-rate", 25] if source.is_dir() else []
        assert track(source, *options, *rate, "--out", out) == 2
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["frame"] for line in lines] == [0, 1, 2, 3]
        assert [line["time"] for line in lines] == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-3)
        assert ["error" in line for line in lines] == [False, True, False, False]
        errors = capsys.readouterr().err
        assert "frame 1: " in errors and "1 of 4 frames failed" in errors


def test_concealed_damage_is_reported(tmp_path: Path) -> None:
    """Decoders fill what is missing of a frame, and only mark it."""
    pytest.importorskip("av")
    noise = list(np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), np.uint8))
    whole = damaged_video(tmp_path / "whole.avi", noise, cut=None).read_bytes()
    *_, last = re.finditer(b"00dc", whole[: whole.index(b"idx1")])
    (tmp_path / "cut.avi").write_bytes(whole[: last.start() + 5000])
    coded = bytearray(write_video(tmp_path / "whole.mp4", noise[:2]).read_bytes())
    middle = coded.index(b"mdat") + 5000  # of the first frame
    coded[middle : middle + 40] = bytes(40)
    (tmp_path / "damaged.mp4").write_bytes(coded)
    for name, times, lost in (("cut.avi", [0, 0.04, 0.08], 0.12), ("damaged.mp4", [0.04], 0)):
        failures: dict[float, Exception] = {}
        frames = list(read_frames(tmp_path / name, damaged=failures.__setitem__))
        assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-3)
        ((time, error),) = failures.items()
        assert time == pytest.approx(lost, abs=1e-3) and str(error) == f"{tmp_path / name}: a damaged frame"
        with pytest.raises(OSError, match="a damaged frame"):
            list(read_frames(tmp_path / name))


def damaged_video(path: Path, images: list[np.ndarray], cut: int | None = 1) -> Path:
    """A video of independent JPEG images, one of which may be cut off."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuvj420p"
        packets = [
            packet
            for image in images
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        ]
        for index, packet in enumerate(packets):
            if index == cut:
                part = av.Packet(bytes(packet)[:40])
                part.stream, part.pts, part.dts = stream, packet.pts, packet.dts
                part.time_base = packet.time_base
                packet = part
            container.mux(packet)
    return path


def test_unreadable_sources_are_errors(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    for source, error, message in (
        (tmp_path / "text.mp4", OSError, "text.mp4: not a readable video"),
        (tmp_path / "gone.mp4", FileNotFoundError, "gone.mp4"),
        ("camera:front", ValueError, 'a camera is "camera:0"'),
        ("camera:99", OSError, "/dev/video99: no such camera"),
    ):
        with pytest.raises(error, match=message):
            next(read_frames(source))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        next(read_frames(tmp_path / "empty"))


def camera_frames(monkeypatch: pytest.MonkeyPatch, frames: Iterator[Any]) -> Iterator[video.Frame]:
    """`read_frames` of a camera that sends these frames."""
    container = SimpleNamespace(decode=lambda video: frames)
    monkeypatch.setattr(video, "_open", lambda path, format: nullcontext(container))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    return read_frames("camera:0")


def test_a_slow_reader_of_a_camera_gets_the_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    released, received = threading.Semaphore(0), threading.Semaphore(0)

    def sent() -> Iterator[Any]:
        for shade in range(7):
            assert released.acquire(timeout=30)
            yield SimpleNamespace(
                rotation=0, to_ndarray=lambda format, shade=shade: np.full((2, 3, 3), shade, np.uint8)
            )
            received.release()

    def send(count: int) -> None:
        for _ in range(count):
            released.release()
            assert received.acquire(timeout=30)

    frames = camera_frames(monkeypatch, sent())
    released.release()
    first = next(frames)
    assert first.image.max() == 0 and received.acquire(timeout=30)
    send(5)
    newest = next(frames)
    assert newest.image.shape == (2, 3, 3) and newest.image.max() == 5 and newest.time > first.time
    released.release()
    assert [frame.image.max() for frame in frames] in ([6], [])  # the end may replace the last one


def test_a_camera_that_fails_or_is_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    finished = threading.Event()

    def failing() -> Iterator[Any]:
        raise av.error.OSError(19, "No such device")
        yield

    def silent() -> Iterator[Any]:
        finished.wait(30)
        yield from ()

    with pytest.raises(OSError, match=r"/dev/video0: .*No such device"):
        next(camera_frames(monkeypatch, failing()))
    monkeypatch.setattr(video, "SILENCE", 0.05)
    with pytest.raises(OSError, match=r"/dev/video0: the camera sent no frame for 0\.05 s"):
        next(camera_frames(monkeypatch, silent()))
    finished.set()


def test_least_presence_of_a_hand_to_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "nvf_fast.estimator.PoseEstimator._least_presence",
        lambda self, detector: seen.append(self.min_presence) or 1.0,
    )
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    (tmp_path / "frames").mkdir()
    Image.fromarray(colours(1)[0]).save(tmp_path / "frames/0.png")
    options = ["--checkpoint", tmp_path / "hand", "--device", "cpu", "--min-presence", 0.25]
    assert track(tmp_path / "frames", *options) == 0
    assert set(seen) == {0.25} and "hands can be missed" in capsys.readouterr().err


def test_sources_without_a_frame_name_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    options = ["--checkpoint", tmp_path / "hand", "--device", "cpu"]
    for name in ("text.jpg", "notes.txt", "clip.mp4"):
        (tmp_path / name).write_text("no video")
    (tmp_path / "nothing.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    damaged_video(tmp_path / "cut.mkv", colours(2)[:1], cut=0)
    for name in ("text.jpg", "notes.txt", "clip.mp4", "nothing.mp4", "folder", "cut.mkv"):
        outputs = ["--out", tmp_path / "out.jsonl", "--overlay", tmp_path / "drawn.mp4"]
        assert track(tmp_path / name, *options, *outputs) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
        assert captured.err.startswith(f"nvf-fast track: {tmp_path / name}: ")
        expected = (
            ") in this folder"
            if name == "folder"
            else "; expected a video file, a folder of images or camera:0"
        )
        assert captured.err.endswith(f"{expected}\n")
        assert not (tmp_path / "drawn.mp4").exists() and not (tmp_path / "out.jsonl").exists()


def test_intrinsics_of_another_size_end_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    K, small, large = [[90.0, 0, 80], [0, 90.0, 60], [0, 0, 1]], (90, 160), (120, 160)
    (tmp_path / "K.json").write_text(json.dumps({"K": K, "size": [160, 120]}))
    options = ["--intrinsics", tmp_path / "K.json", "--checkpoint", tmp_path / "hand", "--device", "cpu"]
    for name, shapes in (("none", [small]), ("some", [large, small, small])):
        (tmp_path / name).mkdir()
        for index, shape in enumerate(shapes):
            Image.fromarray(colours(1, shape)[0]).save(tmp_path / name / f"{index}.png")
        assert track(tmp_path / name, *options, "--out", tmp_path / f"{name}.jsonl") == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == len(shapes) - (name == "some") and "calibrates images of 160 x 120" in errors[0]
    assert not (tmp_path / "none.jsonl").exists() and errors[1].endswith("2 of 3 frames failed")
    assert len((tmp_path / "some.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes")
@pytest.mark.parametrize("room", [30, 300])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, room: int) -> None:
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    (tmp_path / "frames").mkdir()
    for index, image in enumerate(colours(3, (120, 160))):
        Image.fromarray(image).save(tmp_path / f"frames/{index}.png")
    script = """
import resource, sys
from nvf_fast.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""
    command = ["track", tmp_path / "frames", "--fov", "60", "--checkpoint", tmp_path / "hand", "--device"]
    command += ["cpu", "--out", tmp_path / "hands.jsonl"]
    ended = subprocess.run(
        [sys.executable, "-c", script, str(room), *command], capture_output=True, text=True
    )
    error = f"nvf-fast track: {tmp_path / 'hands.jsonl'}: File too large\n"
    assert (ended.returncode, ended.stderr) == (2, error)
    if room == 30:  # less than a line
        assert not (tmp_path / "hands.jsonl").exists()
        return
    lines = (tmp_path / "hands.jsonl").read_text().splitlines()
    assert lines and [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))


def test_frames_of_another_size_are_tracked_but_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    (tmp_path / "frames").mkdir()
    for index, image in enumerate(colours(3, (120, 160))):
        Image.fromarray(image[: 90 if index == 1 else None]).save(tmp_path / f"frames/{index}.png")
    options = ["--fov", 60, "--checkpoint", tmp_path / "hand", "--device", "cpu"]
    assert track(tmp_path / "frames", *options, "--overlay", tmp_path / "drawn.mp4") == 2
    captured = capsys.readouterr()
    assert ["error" in json.loads(line) for line in captured.out.splitlines()] == [False] * 3
    assert captured.err.splitlines() == [
        "nvf-fast track: frame 1 is not in --overlay: frames must have the size of the first, 160 x 120 px, "
        "got 160 x 90",
        "nvf-fast track: not in --overlay: 1 of 3 frames",
    ]
    assert len(list(read_frames(tmp_path / "drawn.mp4"))) == 2


def test_missing_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"nvf-fast\[video\]"):
        next(read_frames(tmp_path / "clip.mp4"))
    with pytest.raises(ImportError, match=r"nvf-fast\[video\]"):
        VideoWriter(tmp_path / "clip.mp4")


def track(*arguments: Any) -> int:
    try:
        main(["track", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_track_writes_a_line_per_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    save_checkpoint(hand_network(), tmp_path / "hand", {})
    clip = write_video(tmp_path / "clip.mp4", colours(3, (120, 160)))
    out, drawn = tmp_path / "out/hands.jsonl", tmp_path / "out/drawn.mp4"
    options = ["--checkpoint", tmp_path / "hand", "--device", "cpu"]
    assert track(clip, "--fov", 60, *options, "--out", out, "--overlay", drawn) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert [line["time"] for line in lines] == pytest.approx([0, 0.04, 0.08])
    assert all(line["camera"]["source"] == "fov" and line["hands"] == [] for line in lines)
    assert [frame.time for frame in read_frames(drawn)] == pytest.approx([0, 0.04, 0.08])
    capsys.readouterr()
    for arguments, message in (
        ([clip, "--out", out], "exists: choose another name"),
        ([clip, "--out", tmp_path / "x.json"], "--out must be a .jsonl or .ndjson file, got"),
        ([clip, "--overlay", tmp_path / "drawn.gif"], "whose name ends in .mp4, .mov, .mkv, got"),
        ([tmp_path / "gone.mp4"], "gone.mp4: No such file"),
        ([clip, "--frame-rate", 0], "--frame-rate must be a positive number"),
        ([clip, "--frame-rate", 25], "--frame-rate is for a folder of images"),
        ([clip, "--fx", 500, "--fov", 60], "only one of --fx"),
        ([clip, "--most-hands", 0], "most_hands must be at least 1"),
        ([clip, "--hand-scale", 0.03], "10 to 60 mm"),
    ):
        assert track(*arguments, *options) == 2
        assert message in capsys.readouterr().err
    assert track(clip, *options) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3 and "assuming 60 degrees" in captured.err
