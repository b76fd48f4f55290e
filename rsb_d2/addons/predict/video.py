"""Videos in; annotated clips without sound, and detections by frame, out.

Frame by frame, so that an hour takes no more memory than a second. OpenCV encodes, in MPEG-4
(``mp4v``), which its packages have and every player knows.
"""

import json
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Dict, Iterator, List

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ...errors import UserError, printable
from ...files import errors_of_writing, open_output
from ...memory import is_out_of_memory
from ...predictor import Predictor
from .video_reader import BadVideoError, Frame, VideoReader, check_name, quiet

_CODEC = "mp4v"
_LONGEST_SIDE = 8190  # in pixels, that this codec codes

Draw = Callable[[np.ndarray, Instances], np.ndarray]


@dataclass
class VideoSummary:
    """What :func:`predict_video` did.

    Args:
        path (str): of the video.
        clip (str): the annotated one.
        results_file (str): detections, a list in the COCO results format, each with ``frame`` and
            ``time`` beside its ``image_id``, which is the index of the frame.
        frames_file (str): frames and categories in the COCO format, which the ids stand for.
        num_frames (int): in which objects were looked for.
        num_objects (int): that were found.
        skipped (list[str]): one line for each frame that could not be decoded, or run of them.
    """

    path: str
    clip: str
    results_file: str
    frames_file: str
    num_frames: int = 0
    num_objects: int = 0
    skipped: List[str] = field(default_factory=list)


def predict_video(
    predictor: Predictor,
    draw: Draw,
    path: str,
    output: str,
    batch_size: int = 1,
    every: int = 1,
) -> VideoSummary:
    """Detect objects in the frames of a video.

    Args:
        predictor (Predictor): of the model.
        draw (callable): makes an annotated RGB picture of an RGB one and its detections, always of
            the same size for frames of one size.
        path (str): of the video.
        output (str): the clip to write, ``….mp4``. ``….results.json`` and ``….frames.json`` are
            beside it. They appear when all of it is done.
        batch_size (int): frames at a time.
        every (int): take every n-th frame; the clip has these alone and takes as long as before.

    Returns:
        VideoSummary

    Raises:
        BadVideoError: if the video cannot be read, has no frame that can be decoded, or needs more
            memory than there is.
        UserError: if a file cannot be written.
    """
    stem = os.path.splitext(output)[0]
    summary = VideoSummary(path, output, f"{stem}.results.json", f"{stem}.frames.json")
    reader = VideoReader(path)
    total = -(-reader.length // every) or None
    is_short_of_memory = False
    try:
        with _Outputs(summary, predictor, reader.rate / every) as outputs:
            with tqdm(total=total, unit="frame", desc=os.path.basename(path)) as progress:
                for batch in _batches(reader.frames(every), batch_size):
                    inputs = [predictor.prepare(_to(predictor.input_format, f)) for f in batch]
                    for frame, instances in zip(batch, predictor(inputs)):
                        outputs.add(frame, instances, draw)
                    progress.update(len(batch))
            if not summary.num_frames:
                raise BadVideoError(path, "it has no frame that can be decoded")
    except (MemoryError, RuntimeError, cv2.error) as e:
        if not is_out_of_memory(e):
            raise
        is_short_of_memory = True
    finally:
        reader.close()
    if is_short_of_memory:
        raise BadVideoError(
            path, f"there is too little memory for --batch {batch_size} of its frames"
        )
    summary.skipped = [_named(first, last, reader) for first, last in reader.damaged]
    # Of a file that was cut without coding it anew, a few frames before the cut are counted.
    if reader.missing > reader.length // 100:
        summary.skipped.append(f"{reader.missing} of its {reader.length} frames are not there")
    for line in summary.skipped:
        print(f"skipped {printable(path)}: {line}", file=sys.stderr)
    return summary


def _batches(frames: Iterator[Frame], size: int) -> Iterator[List[Frame]]:
    batch = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _to(input_format: str, frame: Frame) -> np.ndarray:
    return frame.image if input_format == "BGR" else frame.image[:, :, ::-1]


def _named(first: int, last: int, reader: VideoReader) -> str:
    which = f"frame {first}" if first == last else f"frames {first} to {last}"
    return f"{which} (at {first / reader.rate:.2f} s) cannot be decoded"


class _Outputs:
    """The clip and the two files of one video, written piece by piece to files aside.

    Args:
        summary (VideoSummary): says where; its numbers are counted up.
        predictor (Predictor): of the model.
        rate (float): frames a second of the clip.
    """

    def __init__(self, summary: VideoSummary, predictor: Predictor, rate: float):
        self._summary = summary
        self._predictor = predictor
        self._rate = rate
        self._clip: cv2.VideoWriter | None = None

    def __enter__(self) -> "_Outputs":
        folder = os.path.dirname(self._summary.clip) or "."
        with errors_of_writing(self._summary.clip):
            os.makedirs(folder, exist_ok=True)
            self._aside = tempfile.TemporaryDirectory(prefix=".video-", dir=folder)
        paths = (self._summary.results_file, self._summary.frames_file)
        self._results, self._frames = (open_output(self._place(path), path) for path in paths)
        classes = self._predictor.classes
        categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names)]
        info = {"video": self._summary.path}
        head = json.dumps({"info": info, "annotations": [], "categories": categories})
        self._results.write(b"[")
        self._frames.write((head[:-1] + ', "images": [').encode())
        return self

    def add(self, frame: Frame, instances: Instances, draw: Draw) -> None:
        height, width = frame.image.shape[:2]
        record = {"id": frame.index, "file_name": f"{self._summary.path}#{frame.index}"}
        record |= {"height": height, "width": width, "frame": frame.index, "time": frame.time}
        _append(self._frames, record, not self._summary.num_frames)
        for result in self._predictor.to_coco(instances, frame.index):
            result |= {"frame": frame.index, "time": frame.time}
            _append(self._results, result, not self._summary.num_objects)
            self._summary.num_objects += 1
        self._summary.num_frames += 1
        self._write(draw(np.ascontiguousarray(frame.image[:, :, ::-1]), instances))

    def _write(self, rgb: np.ndarray) -> None:
        scale = _LONGEST_SIDE / max(rgb.shape[:2])
        if scale < 1:
            size = [max(int(side * scale), 1) for side in rgb.shape[1::-1]]
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        # Codecs code colours of two by two pixels.
        rgb = np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge")
        size = (rgb.shape[1], rgb.shape[0])
        if self._clip is None:
            self._size = size
            path = self._place(self._summary.clip)
            check_name(self._summary.path, path)
            with quiet():
                self._clip = cv2.VideoWriter(
                    path, cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*_CODEC), self._rate, size
                )
            if not self._clip.isOpened():
                raise BadVideoError(
                    self._summary.path,
                    f"its clip cannot be written, as this OpenCV does not have the codec {_CODEC} "
                    f"for {size[0]} x {size[1]} pixels; install opencv-python-headless",
                )
        if size != self._size:  # the video changes its size
            rgb = cv2.resize(rgb, self._size)
        self._clip.write(np.ascontiguousarray(rgb[:, :, ::-1]))

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if self._clip is not None:
                self._clip.release()
            if kind is None:
                self._finish()
        finally:
            for file in (self._results, self._frames):
                with suppress(UserError):  # of a full disk, which is raised already
                    file.close()
            self._aside.cleanup()

    def _finish(self) -> None:
        summary = self._summary
        self._results.write(b"]\n")
        self._frames.write(b"]}\n")
        self._results.close()
        self._frames.close()
        with quiet():  # OpenCV's writer does not say that a disk is full
            written = cv2.VideoCapture(self._place(summary.clip), cv2.CAP_FFMPEG)
        is_complete = written.isOpened()
        written.release()
        if not is_complete:
            raise UserError(f"cannot write {summary.clip}: is there room on the disk?")
        with errors_of_writing(summary.clip):
            for path in (summary.clip, summary.results_file, summary.frames_file):
                os.replace(self._place(path), path)

    def _place(self, path: str) -> str:
        return os.path.join(self._aside.name, os.path.basename(path))


def _append(file: IO[bytes], record: Dict[str, Any], is_first: bool) -> None:
    file.write((("\n" if is_first else ",\n") + json.dumps(record)).encode())
