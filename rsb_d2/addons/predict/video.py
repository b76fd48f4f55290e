"""Videos: reading frames, and writing annotated clips without sound and detections by frame.

Frames are processed one by one, so that an hour takes no more memory than a second. OpenCV decodes
and encodes (MPEG-4, ``mp4v``) with the FFmpeg in its package. If PyAV is installed, it decodes,
because it also reports damaged frames that FFmpeg has concealed.

supervision (0.31) is not used: its ``get_video_frames_generator`` ends at the first damaged frame
and does not report it, frames that are missing are not counted, and FFmpeg's messages go to the
terminal; its ``VideoSink`` does not notice a missing codec, a full disk or frames of another size.
"""

import json
import os
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ...errors import UserError, is_utf8, printable
from ...files import errors_of_writing, open_output
from ...memory import is_out_of_memory
from ...predictor import Predictor

try:
    import av
except ImportError:  # the extra "video"
    av = None

EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".mts", ".m2ts", ".3gp", ".ogv"),
)
# Formats that store their number of frames. For others it is estimated from the duration, which
# may be that of the sound.
_WITH_FRAME_COUNT = (".mp4", ".m4v", ".mov", ".avi")
_DEFAULT_RATE = 25.0  # frames per second of a file without a rate
_MAX_FAILURES = 1000  # consecutive failures that are taken for the end of the file
_NOT_CONVERTED = np.empty((0, 0, 3), dtype=np.uint8)

_CODEC = "mp4v"
_LONGEST_SIDE = 8190  # pixels that this codec can encode

Draw = Callable[[np.ndarray, Instances], np.ndarray]


# ---- reading ----


class Frame(NamedTuple):
    """One frame of a video.

    Args:
        index (int): 0 for the first frame of the file.
        time (float): seconds since the start.
        image (ndarray): (H, W, 3), uint8, BGR, upright.
    """

    index: int
    time: float
    image: np.ndarray


def is_video(path: str) -> bool:
    """Return whether a file name has the extension of a video."""
    return path.lower().endswith(EXTENSIONS)


class BadVideoError(UserError):
    """A video that cannot be used.

    Args:
        path (str): of the file.
        reason (str): without the path.

    Attributes:
        reason (str): one line.
    """

    def __init__(self, path: str, reason: str):
        self.reason = printable(reason)
        super().__init__(f"cannot use the video {printable(path)}: {self.reason}")


class VideoReader:
    """Reader of the frames of a video file.

    Args:
        path (str): of the file.

    Attributes:
        rate (float): frames per second.
        length (int): number of frames according to the file; 0 if it has none.
        damaged (list[tuple[int, int]]): first and last index of each range of frames that could
            not be decoded so far.
        missing (int): frames that are counted in ``length`` and were neither decoded nor damaged.

    Raises:
        BadVideoError: if the file cannot be read, is not a video, is cut short, or has a codec
            that OpenCV does not have.
    """

    def __init__(self, path: str):
        self.path = path
        if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
            raise BadVideoError(
                path,
                "this OpenCV is built without FFmpeg, so it reads no videos; install "
                "opencv-python-headless",
            )
        _check_name(path, path)
        try:
            with open(path, "rb") as f:
                is_empty = not f.read(1)
        except OSError as e:
            raise BadVideoError(path, e.strerror or str(e)) from None
        if is_empty:
            raise BadVideoError(path, "the file is empty")
        with _quiet():
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise BadVideoError(
                path,
                "it is not a video, has no frames, is cut short, or has a codec that OpenCV's "
                "FFmpeg does not have; convert it, as with ffmpeg to H.264",
            )
        self.rate = _valid_rate(capture.get(cv2.CAP_PROP_FPS))
        self.length = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.damaged: List[Tuple[int, int]] = []
        self.missing = 0
        self._capture = capture

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Decode the frames; the indices of damaged ones are appended to ``damaged``.

        Args:
            every (int): only the frames of the indices 0, ``every``, 2 * ``every``, ...

        Raises:
            BadVideoError: if the rest of the video cannot be decoded.
        """
        index, end = 0, 0.0
        for time, image in self._safely(self._decoded(every)):
            if image is None:
                if self.damaged and self.damaged[-1][1] == index - 1:
                    self.damaged[-1] = (self.damaged[-1][0], index)
                else:
                    self.damaged.append((index, index))
            elif index % every == 0:
                yield Frame(index, round(max(time, 0.0), 6), image)
            index, end = index + 1, time + 1 / self.rate
        if self.path.lower().endswith(_WITH_FRAME_COUNT):
            self.missing = max(self.length - index, 0)
        elif end * self.rate < 0.9 * self.length:
            self.missing = self.length - round(end * self.rate)

    def _safely(self, frames: Iterator[Tuple[float, Any]]) -> Iterator[Tuple[float, Any]]:
        try:
            yield from frames
        except Exception as e:  # decoders raise many types for damaged files
            lines = str(e).strip().splitlines() or [type(e).__name__]
            raise BadVideoError(self.path, f"it cannot be decoded ({lines[0][:200]})") from None

    def _decoded(self, every: int) -> Iterator[Tuple[float, np.ndarray | None]]:
        """Yield time and image of each frame; the image of a damaged one is ``None``.

        The image of a frame that is not requested by ``every`` has no meaning.
        """
        return self._by_pyav(every) if av is not None else self._by_opencv(every)

    def _by_opencv(self, every: int) -> Iterator[Tuple[float, np.ndarray | None]]:
        index, failures, time = 0, 0, 0.0
        while failures <= _MAX_FAILURES:
            # Other frames are decoded, but not converted to pixels.
            if not self._capture.grab():
                failures += 1
                continue
            for _ in range(failures):
                yield time, None
            index, failures = index + failures, 0
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time = stamp if stamp > 0 or index == 0 else time + 1 / self.rate
            if index % every == 0:
                is_decoded, image = self._capture.retrieve()
                yield time, _three_channels(image) if is_decoded and image.size else None
            else:
                yield time, _NOT_CONVERTED
            index += 1

    def _by_pyav(self, every: int) -> Iterator[Tuple[float, np.ndarray | None]]:
        index, time, failed = 0, 0.0, 0
        with av.open(self.path, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            start = float((stream.start_time or 0) * stream.time_base)
            for packet in _until_damaged(container.demux(stream)):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    failed += 1
                    continue
                for frame in frames:
                    for _ in range(failed):
                        yield time, None
                    index, failed = index + failed, 0
                    time = time + 1 / self.rate if frame.time is None else frame.time - start
                    image = None if frame.is_corrupt else _NOT_CONVERTED
                    if image is not None and index % every == 0:
                        image = frame.to_ndarray(format="bgr24")
                        image = np.rot90(image, round(frame.rotation / 90))
                    yield time, image
                    index += 1

    def close(self) -> None:
        self._capture.release()


def _until_damaged(packets: Iterator) -> Iterator:
    """Yield packets until the container itself is damaged; the rest is counted as missing."""
    try:
        yield from packets
    except av.error.FFmpegError:
        return


def _check_name(path: str, name: str) -> None:
    """Raise a :class:`BadVideoError` for a file name on which OpenCV crashes."""
    if not is_utf8(name):
        reason = f"the name {name} is not UTF-8, which OpenCV does not read; rename it"
        raise BadVideoError(path, reason)


def _three_channels(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image[:, :, :3]


def _valid_rate(rate: float) -> float:
    # Files that have only time stamps report 0, or the units of the time stamps.
    return rate if np.isfinite(rate) and 0 < rate <= 1000 else _DEFAULT_RATE


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence OpenCV in the block, whose errors are reported in one line instead."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


# ---- prediction ----


@dataclass
class VideoSummary:
    """Result of :func:`predict_video`.

    Args:
        path (str): of the video.
        clip (str): path of the annotated clip.
        results_file (str): detections, a list in the COCO results format; ``image_id`` is the
            index of the frame, and each entry also has ``frame`` and ``time``.
        frames_file (str): frames and categories in the COCO format.
        num_frames (int): number of frames that were predicted.
        num_objects (int): number of detections.
        skipped (list[str]): one line for each range of frames that could not be decoded.
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
        draw (callable): takes an RGB image and its detections, and returns an annotated RGB
            picture, whose size depends only on that of the image.
        path (str): of the video.
        output (str): the clip to write, ``NAME.mp4``, with ``NAME.results.json`` and
            ``NAME.frames.json`` next to it. The files appear when all frames are done.
        batch_size (int): of the model.
        every (int): use every n-th frame; the clip has only these and lasts as long as the video.

    Returns:
        VideoSummary

    Raises:
        BadVideoError: if the video cannot be read, has no frame that can be decoded, or needs too
            much memory.
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
                    inputs = [
                        predictor.prepare(_channels(predictor.input_format, f)) for f in batch
                    ]
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
    summary.skipped = [_describe(first, last, reader) for first, last in reader.damaged]
    # A video that was cut without re-encoding counts a few frames before the cut.
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


def _channels(input_format: str, frame: Frame) -> np.ndarray:
    return frame.image if input_format == "BGR" else frame.image[:, :, ::-1]


def _describe(first: int, last: int, reader: VideoReader) -> str:
    which = f"frame {first}" if first == last else f"frames {first} to {last}"
    return f"{which} (at {first / reader.rate:.2f} s) cannot be decoded"


class _Outputs:
    """The clip and the two files of one video, written frame by frame to a temporary folder.

    Args:
        summary (VideoSummary): has the paths; its counts are increased.
        predictor (Predictor): of the model.
        rate (float): frames per second of the clip.
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
            self._temporary = tempfile.TemporaryDirectory(prefix=".video-", dir=folder)
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
        # Codecs store the color of two by two pixels.
        rgb = np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge")
        size = (rgb.shape[1], rgb.shape[0])
        if self._clip is None:
            self._size = size
            path = self._place(self._summary.clip)
            _check_name(self._summary.path, path)
            with _quiet():
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
                with suppress(UserError):  # a full disk, which has been raised already
                    file.close()
            self._temporary.cleanup()

    def _finish(self) -> None:
        summary = self._summary
        self._results.write(b"]\n")
        self._frames.write(b"]}\n")
        self._results.close()
        self._frames.close()
        with _quiet():  # OpenCV's writer does not report a full disk
            written = cv2.VideoCapture(self._place(summary.clip), cv2.CAP_FFMPEG)
        is_complete = written.isOpened()
        written.release()
        if not is_complete:
            raise UserError(f"cannot write {summary.clip}: is there room on the disk?")
        with errors_of_writing(summary.clip):
            for path in (summary.clip, summary.results_file, summary.frames_file):
                os.replace(self._place(path), path)

    def _place(self, path: str) -> str:
        return os.path.join(self._temporary.name, os.path.basename(path))


def _append(file: IO[bytes], record: Dict[str, Any], is_first: bool) -> None:
    file.write((("\n" if is_first else ",\n") + json.dumps(record)).encode())
