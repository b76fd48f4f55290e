"""Video files: which of a user's files are some, and their frames one after the other.

OpenCV decodes, with the FFmpeg that is in its package; where PyAV is installed, it does, since it
says of a damaged frame that FFmpeg has mended with a part of another that it is none.
"""

from contextlib import contextmanager
from typing import Any, Iterator, List, NamedTuple, Tuple

import cv2
import numpy as np

from ...errors import UserError, is_utf8, printable

try:
    import av
except ImportError:  # it is no dependency
    av = None

ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".mts", ".m2ts", ".3gp", ".ogv"),
)
# Of these the number of frames is in the file; that of others is an estimate from how long it
# lasts, which may be how long its sound lasts.
_COUNTED = (".mp4", ".m4v", ".mov", ".avi")
_DEFAULT_RATE = 25.0  # frames a second, of a file that does not say
_MAX_FAILURES = 1000  # in a row, after which the file has ended
_PASSED_OVER = np.empty((0, 0, 3), dtype=np.uint8)


class Frame(NamedTuple):
    """One frame of a video.

    Args:
        index (int): 0 for the first one of the file.
        time (float): seconds from the beginning.
        image (ndarray): (H, W, 3), uint8, BGR, upright.
    """

    index: int
    time: float
    image: np.ndarray


def is_video(path: str) -> bool:
    """Whether a file is one by the ending of its name."""
    return path.lower().endswith(ENDINGS)


class BadVideoError(UserError):
    """One video cannot be used.

    Args:
        path (str): of the file.
        reason (str): what is wrong with it.

    Attributes:
        reason (str): one line.
    """

    def __init__(self, path: str, reason: str):
        self.reason = printable(reason)
        super().__init__(f"cannot use the video {printable(path)}: {self.reason}")


class VideoReader:
    """The frames of a video file.

    Args:
        path (str): of the file.

    Attributes:
        rate (float): frames a second.
        length (int): frames that the file says it has; 0 where it does not say.
        damaged (list[tuple[int, int]]): of the frames that could not be decoded so far, the first
            and the last of each run.
        missing (int): frames that the file says it has and that were not there, at its end or
            where FFmpeg passed over them.

    Raises:
        BadVideoError: if it cannot be read, is not a video, is cut short, or has a codec that
            OpenCV does not have.
    """

    def __init__(self, path: str):
        self.path = path
        if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
            raise BadVideoError(
                path,
                "this OpenCV is built without FFmpeg, so it reads no videos; install "
                "opencv-python-headless",
            )
        check_name(path, path)
        try:
            with open(path, "rb") as f:
                is_empty = not f.read(1)
        except OSError as e:
            raise BadVideoError(path, e.strerror or str(e)) from None
        if is_empty:
            raise BadVideoError(path, "the file is empty")
        with quiet():
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise BadVideoError(
                path,
                "it is not a video, has no frames, is cut short, or has a codec that OpenCV's "
                "FFmpeg does not have; convert it, as with ffmpeg to H.264",
            )
        self.rate = _rate(capture.get(cv2.CAP_PROP_FPS))
        self.length = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.damaged: List[Tuple[int, int]] = []
        self.missing = 0
        self._capture = capture

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Decode the frames; those that cannot be are named in ``damaged``.

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
        if self.path.lower().endswith(_COUNTED):
            self.missing = max(self.length - index, 0)
        elif end * self.rate < 0.9 * self.length:
            self.missing = self.length - round(end * self.rate)

    def _safely(self, frames: Iterator[Tuple[float, Any]]) -> Iterator[Tuple[float, Any]]:
        try:
            yield from frames
        except Exception as e:  # what a damaged file makes the decoders raise is of many types
            lines = str(e).strip().splitlines() or [type(e).__name__]
            raise BadVideoError(self.path, f"it cannot be decoded ({lines[0][:200]})") from None

    def _decoded(self, every: int) -> Iterator[Tuple[float, np.ndarray | None]]:
        """Time and image of each frame, ``None`` of a damaged one.

        One that is passed over may have any image.
        """
        return self._by_pyav(every) if av is not None else self._by_opencv(every)

    def _by_opencv(self, every: int) -> Iterator[Tuple[float, np.ndarray | None]]:
        index, failures, time = 0, 0, 0.0
        while failures <= _MAX_FAILURES:
            # What is passed over is decoded, but not converted to pixels.
            if not self._capture.grab():
                failures += 1
                continue
            for _ in range(failures):
                yield time, None
            index, failures = index + failures, 0
            said = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time = said if said > 0 or index == 0 else time + 1 / self.rate
            if index % every == 0:
                whole, image = self._capture.retrieve()
                yield time, _three_channels(image) if whole and image.size else None
            else:
                yield time, _PASSED_OVER
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
                    image = None if frame.is_corrupt else _PASSED_OVER
                    if image is not None and index % every == 0:
                        image = frame.to_ndarray(format="bgr24")
                        image = np.rot90(image, round(frame.rotation / 90))
                    yield time, image
                    index += 1

    def close(self) -> None:
        self._capture.release()


def _until_damaged(packets: Iterator) -> Iterator:
    """Packets up to where the container itself is damaged; what is then missing is counted."""
    try:
        yield from packets
    except av.error.FFmpegError:
        return


def check_name(path: str, name: str) -> None:
    """Raise a :class:`BadVideoError` for a name of a file that OpenCV crashes on.

    Args:
        path (str): of the video.
        name (str): of it, or of its clip.
    """
    if not is_utf8(name):
        reason = f"the name {name} is not UTF-8, which OpenCV does not read; rename it"
        raise BadVideoError(path, reason)


def _three_channels(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image[:, :, :3]


def _rate(said: float) -> float:
    # Files with time stamps alone give 0, or the units of these.
    return said if np.isfinite(said) and 0 < said <= 1000 else _DEFAULT_RATE


@contextmanager
def quiet() -> Iterator[None]:
    """OpenCV says nothing: the error that follows says it in one line."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
