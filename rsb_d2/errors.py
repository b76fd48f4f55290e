"""The exception for mistakes that a user can fix, and helpers for its messages."""

import difflib
import os
import select
import signal
import sys
from contextlib import contextmanager
from typing import Any, Iterable, Iterator, List


class UserError(ValueError):
    """A mistake in a config, a file or data that the user can fix.

    The message names, in one or two lines, the problem, the key or file, and the fix. Programs
    print it without a traceback and exit with a nonzero status.
    """


class MissingDetectron2Error(UserError, ImportError):
    """Detectron2 is not installed; the message has the command that installs it."""

    def __init__(self) -> None:
        super().__init__(
            "Detectron2 is not installed: run `rsb-d2 install-detectron2` (in a checkout, `python "
            "tools/install_detectron2.py`); PyPI does not have it under its own name"
        )


def printable(text: str) -> str:
    """Escape line breaks and unprintable characters of a text for a one-line message."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_utf8(text: str) -> bool:
    """Whether a text is valid UTF-8; Python reads invalid bytes as surrogates, which are not."""
    return text == text.encode("utf-8", "ignore").decode("utf-8")


def first(values: Iterable[Any], count: int = 5) -> str:
    """Return the first values as text for a message: "3, 5, 8, 9, 12, ..."."""
    values = list(values)
    return ", ".join(printable(str(v)) for v in values[:count]) + (
        ", ..." if len(values) > count else ""
    )


def did_you_mean(name: Any, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Return "did you mean A, B?" with up to five known names close to one, or ``otherwise``.

    ``cutoff`` is the least similarity, 0 ... 1, as of ``difflib.get_close_matches``.
    """
    near = difflib.get_close_matches(str(name), list(known), 5, cutoff)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def count(number: int, what: str) -> str:
    """Return a number of things for a message: "1 image", "2 images"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def first_ids(ids: List[int]) -> str:
    """Return the first ids as text for a message: "first ids: 3, 5, 8, 9, 12, ..."."""
    return f"first ids: {first(ids)}" if len(ids) > 5 else f"ids: {first(ids)}"


def how_to_make(path: str) -> str:
    """Return how to make a missing file of the sample data, for the end of a message, or ""."""
    return "; `rsb-d2 sample-data` makes it" if "datasets/rsb_sample" in path else ""


@contextmanager
def end_with_closed_pipe() -> Iterator[None]:
    """Context manager that ends a program quietly if nobody reads its output, as with ``| head``.

    The exit status is 141, which shells report for programs that SIGPIPE ends. A broken pipe to
    another process, such as a worker, remains an error.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:
            raise
        for stream in closed:  # Python flushes them again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _has_no_reader(stream: Any) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # errors only
    return any(event & select.POLLERR for _, event in poll.poll(0))
