"""Videos: clips, detections by frame, damaged frames; with a detector of red squares."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from rsb_d2 import UserError, files
from rsb_d2.addons.predict import video
from rsb_d2.addons.predict.video import BadVideoError, VideoReader, predict_video
from tests.helpers.clips import NUM_FRAMES, RATE, WIDTH, make_clip


def damage(path, frame, start=0):
    """Overwrite a frame with zeros from byte ``start`` on. In mp4, ``stsz`` has the sizes."""
    content = bytearray(path.read_bytes())
    table = content.index(b"stsz") + 16
    sizes = struct.unpack_from(f">{NUM_FRAMES}I", content, table)
    begin = content.index(b"mdat") + 4 + sum(sizes[:frame])
    content[begin + start : begin + sizes[frame]] = bytes(sizes[frame] - start)
    path.write_bytes(content)


class RedSquares:
    """A predictor that finds the red square of an RGB image."""

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
    """Swap colors, to distinguish the clip from the video."""
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
    # pycocotools reads the two files.
    truth = COCO(summary.frames_file)
    loaded = truth.loadRes(summary.results_file)
    assert len(loaded.getAnnIds()) == len(truth.getImgIds()) == len(indices)
    assert truth.loadImgs([0])[0]["width"] == WIDTH - 1  # as encoded
    # The clip has the same frames and duration, the drawn pictures, and no sound.
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


def test_damaged_frames_are_reported_and_skipped(tmp_path, capsys, decoder):
    clip = make_clip(tmp_path / "a.mp4")
    damage(clip, frame=7)
    summary = predict_video(RedSquares(), green, str(clip), str(tmp_path / "out.mp4"))
    assert summary.skipped == ["frame 7 (at 0.70 s) cannot be decoded"]
    assert f"skipped {clip}: {summary.skipped[0]}" in capsys.readouterr().err
    results = json.loads((tmp_path / "out.results.json").read_text())
    assert [r["frame"] for r in results] == [i for i in range(NUM_FRAMES) if i != 7]
    assert results[-1]["bbox"][0] == pytest.approx(4 * (NUM_FRAMES - 1), abs=3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_videos(tmp_path, monkeypatch, degrees):
    """The rotation is in the matrix of the track, as in videos of phones."""
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


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])  # mkv does not store the number of frames
def test_missing_frames_are_counted(tmp_path, name, decoder):
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
def test_files_that_are_not_videos(tmp_path, make, message):
    make(tmp_path / "a.mp4")
    assert_nothing_is_left(tmp_path, BadVideoError, message)


def assert_nothing_is_left(tmp_path, error, message="", draw=green):
    out = tmp_path / "out"
    with pytest.raises(error, match=message or None) as raised:
        predict_video(RedSquares(), draw, str(tmp_path / "a.mp4"), str(out / "a.mp4"))
    assert raised.type is error and len(str(raised.value).splitlines()) <= 1
    assert not list(tmp_path.glob("out/*"))


def test_failures_leave_nothing(tmp_path, monkeypatch):
    make_clip(tmp_path / "a.mp4", num_frames=3)

    def raises(error):
        def fail(*_):
            raise error

        return fail

    assert_nothing_is_left(tmp_path, BadVideoError, "too little memory", raises(MemoryError()))
    assert_nothing_is_left(tmp_path, KeyboardInterrupt, "", raises(KeyboardInterrupt()))

    def write(self, data):
        with files.errors_of_writing(self._shown):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(files._Output, "write", write)
        assert_nothing_is_left(tmp_path, UserError, "cannot write .*a.results.json: No space left")
    monkeypatch.setattr(video, "_CODEC", "xyzw")
    assert_nothing_is_left(tmp_path, BadVideoError, "does not have the codec xyzw")
