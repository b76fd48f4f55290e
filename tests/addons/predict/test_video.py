"""Videos: clips, detections by frame, damaged frames; the detector is one that sees squares."""

import json
import os
import struct
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from rsb_d2 import UserError, files
from rsb_d2.addons.predict import video
from rsb_d2.addons.predict.files import find_images, find_inputs
from rsb_d2.addons.predict.video import BadVideoError, VideoReader, predict_video
from tests.helpers.clips import (
    NUM_FRAMES,
    RATE,
    WIDTH,
    make_clip,
)
from tests.helpers.runs.programs import load_tool
from tests.helpers.seeded_run import make_seeded_run


def damage(path, frame, start=0):
    """Make zeros of a frame, from byte ``start`` of it on. In mp4, ``stsz`` has their sizes."""
    content = bytearray(path.read_bytes())
    table = content.index(b"stsz") + 16
    sizes = struct.unpack_from(f">{NUM_FRAMES}I", content, table)
    begin = content.index(b"mdat") + 4 + sum(sizes[:frame])
    content[begin + start : begin + sizes[frame]] = bytes(sizes[frame] - start)
    path.write_bytes(content)


class RedSquares:
    """What predict_video needs of a predictor; it finds the red square of an RGB image."""

    input_format = "RGB"
    classes = SimpleNamespace(names=("square",), ids=(5,))

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return {"image": image}

    def __call__(self, batch):
        self.batches.append(len(batch))
        return [self._find(entry["image"]) for entry in batch]

    def _find(self, image):
        red = (image[..., 0] > 180) & (image[..., 2] < 80)
        ys, xs = np.nonzero(red)
        corners = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else []
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(corners))
        found.pred_classes = torch.zeros(len(corners), dtype=torch.int64)
        return found

    def to_coco(self, instances, image_id):
        return [
            dict(image_id=image_id, category_id=5, bbox=[x, y, r - x, b - y], score=1.0)
            for x, y, r, b in instances.pred_boxes.tensor.tolist()
        ]


def green(image, instances):
    """Draws nothing; the clip is told from its original by its colours."""
    return np.ascontiguousarray(np.roll(image, 1, axis=2))


@pytest.mark.parametrize("every, batch", [(1, 1), (1, 8), (3, 2)])
def test_every_frame_has_its_detections(tmp_path, every, batch):
    clip = make_clip(tmp_path / "a.mp4")
    predictor, out = RedSquares(), tmp_path / "out" / "a.mp4"
    summary = predict_video(predictor, green, str(clip), str(out), batch, every)
    indices = list(range(0, NUM_FRAMES, every))
    results = json.loads((tmp_path / "out" / "a.results.json").read_text())
    assert [r["frame"] for r in results] == [r["image_id"] for r in results] == indices
    assert [r["time"] for r in results] == pytest.approx([i / RATE for i in indices])
    for result in results:
        expected = [4 * result["frame"], 20, 40, 40]
        assert result["bbox"] == pytest.approx(expected, abs=3)  # the codec blurs edges
    assert (summary.num_frames, summary.num_objects) == (len(indices),) * 2
    assert summary.skipped == [] and max(predictor.batches) == batch
    # The two files are what pycocotools reads.
    truth = COCO(summary.frames_file)
    loaded = truth.loadRes(summary.results_file)
    assert len(loaded.getAnnIds()) == len(truth.getImgIds()) == len(indices)
    assert truth.loadImgs([0])[0]["width"] == WIDTH - 1  # as it is coded
    # The clip: as many frames, as long as before, what was drawn, no other stream.
    reader = VideoReader(str(out))
    frames = list(reader.frames())
    assert len(frames) == len(indices) and reader.rate == pytest.approx(RATE / every, rel=1e-3)
    assert frames[0].image[40, 20].argmax() == 1  # of BGR: red was made green
    assert b"soun" not in out.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == [
        *("a.frames.json", "a.mp4", "a.results.json")
    ]


@pytest.fixture(params=["PyAV", "OpenCV"])
def decoder(request, monkeypatch):
    if request.param == "OpenCV":
        monkeypatch.setattr(video, "av", None)
    else:
        pytest.importorskip("av")
    return request.param


def test_damaged_frames_are_named_and_skipped(tmp_path, capsys, decoder):
    clip = make_clip(tmp_path / "a.mp4")
    damage(clip, frame=7)
    summary = predict_video(RedSquares(), green, str(clip), str(tmp_path / "out.mp4"))
    assert summary.skipped == ["frame 7 (at 0.70 s) cannot be decoded"]
    assert f"skipped {clip}: {summary.skipped[0]}" in capsys.readouterr().err
    results = json.loads((tmp_path / "out.results.json").read_text())
    assert [r["frame"] for r in results] == [i for i in range(NUM_FRAMES) if i != 7]
    assert results[-1]["bbox"][0] == pytest.approx(4 * (NUM_FRAMES - 1), abs=3)


def test_a_frame_that_was_mended_is_named(tmp_path):
    pytest.importorskip("av")
    clip = make_clip(tmp_path / "a.mp4")
    damage(clip, frame=7, start=200)
    reader = VideoReader(str(clip))
    frames = [frame.index for frame in reader.frames(every=2)]
    assert frames == list(range(0, NUM_FRAMES, 2)) and reader.damaged == [(7, 7)]


def test_both_decoders_see_the_same(tmp_path, monkeypatch):
    pytest.importorskip("av")
    clip = make_clip(tmp_path / "a.mp4")
    by_av = list(VideoReader(str(clip)).frames(every=3))
    monkeypatch.setattr(video, "av", None)
    by_cv = list(VideoReader(str(clip)).frames(every=3))
    assert [f[:2] for f in by_av] == [f[:2] for f in by_cv] and len(by_av) == 7
    for a, b in zip(by_av, by_cv):
        assert np.abs(a.image.astype(int) - b.image).mean() < 2  # of YUV to RGB


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_clip_that_was_turned(tmp_path, monkeypatch, degrees):
    """As a telephone says it: in the matrix of the track."""
    pytest.importorskip("av")
    clip = make_clip(tmp_path / "a.mp4", num_frames=2)
    content = bytearray(clip.read_bytes())
    # tkhd, version 0: 4 of type, 4 of flags, 20 of times and ids, 16 of layer and volume, then
    # the matrix a b u c d v x y w in 16.16.
    begin = content.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    values = [a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30]
    content[begin : begin + 36] = struct.pack(">9i", *values)
    clip.write_bytes(content)
    by_av = next(VideoReader(str(clip)).frames()).image
    monkeypatch.setattr(video, "av", None)
    by_cv = next(VideoReader(str(clip)).frames()).image
    assert by_av.shape == by_cv.shape and (by_av.shape[0] > by_av.shape[1]) == (degrees != 180)
    assert np.abs(by_av.astype(int) - by_cv).mean() < 2


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])  # the latter does not count its frames
def test_a_clip_that_is_cut_short(tmp_path, name, decoder):
    clip = make_clip(tmp_path / name, codec="MJPG")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    summary = predict_video(RedSquares(), green, str(clip), str(tmp_path / "out.mp4"))
    assert 5 <= summary.num_frames <= 12
    lost = NUM_FRAMES - summary.num_frames
    assert summary.skipped == [f"{lost} of its {NUM_FRAMES} frames are not there"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("no video " * 100), "a.mp4: it is not a video"),
        (lambda path: make_clip(path, num_frames=0), "has no frames"),
        (lambda path: path.write_bytes(make_clip(path).read_bytes()[:9000]), "is cut short"),
    ],
)
def test_what_is_no_video(tmp_path, make, message):
    make(tmp_path / "a.mp4")
    with pytest.raises(BadVideoError, match=message) as error:
        predict_video(RedSquares(), green, str(tmp_path / "a.mp4"), str(tmp_path / "out" / "a.mp4"))
    assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.glob("out/*"))


def test_a_codec_that_is_missing(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "_CODEC", "xyzw")
    with pytest.raises(UserError, match="does not have the codec xyzw"):
        predict_video(RedSquares(), green, str(clip), str(tmp_path / "out" / "a.mp4"))
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(cv2.videoio_registry, "getBackends", list)
    with pytest.raises(BadVideoError, match="built without FFmpeg"):
        VideoReader(str(clip))


def test_a_full_disk_is_no_bad_video(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "a.mp4", num_frames=3)

    def write(self, data):
        with files.errors_of_writing(self._shown):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files._Output, "write", write)
    with pytest.raises(UserError, match="cannot write .*a.results.json: No space left") as error:
        predict_video(RedSquares(), green, str(clip), str(tmp_path / "out" / "a.mp4"))
    assert not isinstance(error.value, BadVideoError)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_clip_that_is_too_long_for_its_codec(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", num_frames=2)

    def wide(image, instances):
        return np.zeros((20, 9001, 3), dtype=np.uint8)

    predict_video(RedSquares(), wide, str(clip), str(tmp_path / "out.mp4"))
    frames = list(VideoReader(str(tmp_path / "out.mp4")).frames())
    assert len(frames) == 2 and frames[0].image.shape[:2] == (18, 8190)


def test_too_little_memory_for_frames(tmp_path):
    def short(image, instances):
        raise MemoryError

    clip = make_clip(tmp_path / "a.mp4", num_frames=2)
    with pytest.raises(BadVideoError, match="too little memory"):
        predict_video(RedSquares(), short, str(clip), str(tmp_path / "out" / "a.mp4"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_decoder_that_fails(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "a.mp4")

    def decoded(self, every):
        yield 0.0, np.zeros((20, 20, 3), dtype=np.uint8)
        raise IndexError("no such stream")

    monkeypatch.setattr(VideoReader, "_decoded", decoded)
    with pytest.raises(BadVideoError, match=r"cannot be decoded \(no such stream\)"):
        predict_video(RedSquares(), green, str(clip), str(tmp_path / "out" / "a.mp4"))


def test_nothing_is_kept_of_a_run_that_fails(tmp_path):
    def fails(image, instances):
        raise KeyboardInterrupt

    clip = make_clip(tmp_path / "a.mp4")
    with pytest.raises(KeyboardInterrupt):
        predict_video(RedSquares(), fails, str(clip), str(tmp_path / "out" / "a.mp4"))
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_are_not_kept(tmp_path):
    """However long the video, there are about two batches of frames at a time."""
    clip = make_clip(tmp_path / "a.mp4")
    frames, most = [], []

    class Frame(np.ndarray):  # to which there are weak references
        pass

    class Counted(RedSquares):
        def prepare(self, image):
            frame = np.array(image).view(Frame)
            frames.append(weakref.ref(frame))
            most.append(sum(reference() is not None for reference in frames))
            return super().prepare(frame)

    predict_video(Counted(), green, str(clip), str(tmp_path / "out.mp4"), batch_size=4)
    assert len(most) == NUM_FRAMES and max(most) <= 8


def test_videos_are_told_from_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.MP4", "mixed/c.mov", "mixed/d.png", "clips/e.webm", "mixed/f.mpg"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        open(name, "w").close()
    found = find_inputs(["a.jpg", "b.MP4", "mixed", "clips", "*", "*.jpg"])
    videos = [("b.MP4", "b"), ("mixed/c.mov", "c"), ("mixed/f.mpg", "f"), ("clips/e.webm", "e")]
    assert found.videos == videos
    assert found.images == [("a.jpg", "a"), ("mixed/d.png", "d")]
    assert [path for path, _ in find_images(["mixed"])] == ["mixed/d.png"]
    with pytest.raises(UserError, match="there is no image or folder none.mp4"):
        find_inputs(["a.jpg", "none.mp4"])


def test_the_program_on_images_and_videos(tmp_path, monkeypatch, capsys):
    make_seeded_run(tmp_path / "run", "faster")
    make_clip(tmp_path / "clip.mp4", num_frames=4)
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        words = ["predict.py", "--run", "run", "--output", "out", "--threshold", "0.9", *words]
        monkeypatch.setattr("sys.argv", words)
        return load_tool("predict").main()

    assert run("clip.mp4", "a.jpg", "--every", "2", "--batch", "2") == 0
    captured = capsys.readouterr()
    assert "clip.mp4: 2 frames, " in captured.out and "frame/s" in captured.err
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    videos = {f"videos/clip.{ending}" for ending in ("mp4", "results.json", "frames.json")}
    assert written == videos | {"pictures/a.jpg", "results.json", "images.json", "run.json"}
    results = json.loads((tmp_path / "out" / "videos" / "clip.results.json").read_text())
    assert {r["frame"] for r in results} <= {0, 2} and all(r["score"] >= 0.9 for r in results)
    assert run("clip.mp4", "--every", "0") == 2
    assert "--every is 0; it must be 1 or more" in capsys.readouterr().err
