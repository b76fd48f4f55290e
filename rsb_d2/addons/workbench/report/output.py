"""Pages: one HTML file with its style, its scripts, its data and its pictures inside."""

import html
import json
import math
import os
import sys
import uuid
from typing import Any, Callable, Dict, Iterable

from tqdm import tqdm

from ....errors import UserError

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")


def check_output(path: str, suffix: str) -> None:
    """Stop early if a file cannot be written; makes the folders that are missing.

    Args:
        path (str): file to write.
        suffix (str): what its name must end in.

    Raises:
        UserError: if it is a folder, or in one that cannot be written to, or has another suffix.
    """
    if os.path.isdir(path):
        example = os.path.join(path, "page" + suffix)
        raise UserError(f"--output: {path} is a folder; name a file, e.g. {example}")
    if not path.endswith(suffix):
        raise UserError(f"--output: {path} must end in {suffix}")
    folder = os.path.dirname(os.path.abspath(path))
    probe = os.path.join(folder, f".{uuid.uuid4().hex}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, "w"):
            pass
        os.remove(probe)
    except OSError as e:
        raise UserError(f"--output: cannot write to the folder {folder}: {e.strerror}") from None


def write_whole(path: str, content: bytes) -> None:
    """Write a file aside and rename it, so that half of it is never taken for the whole."""
    aside = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(aside, "wb") as f:
            f.write(content)
        os.replace(aside, path)
    except OSError as e:
        if os.path.exists(aside):
            os.remove(aside)
        raise UserError(f"--output: cannot write {path}: {e.strerror}") from None


def render(template: str, title: str, data: Dict[str, Any]) -> bytes:
    """Fill a page.

    Args:
        template (str): ``"report"`` or ``"browse"``.
        title (str): its title, as plain text.
        data (dict): what its script shows; what is not finite becomes null.

    Returns:
        bytes: HTML that refers to nothing outside itself.

    Raises:
        UserError: if plotly, which draws the charts, is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("the charts need plotly; install it: pip install plotly") from None
    # HTML looks for tags in the data, too; to JSON, "\\u003c" is "<".
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _asset("style.css"),
        "BODY": _asset(f"{template}.html"),
        "COMMON": _asset("common.js"),
        "SCRIPT": _asset(f"{template}.js"),
        "DATA": text.replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
    }
    pieces = _asset("page.html").split("%%")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces).encode("utf-8")


def _asset(name: str) -> str:
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as f:
        return f.read()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def progress(what: str) -> Callable[[Iterable], Iterable]:
    """Return a function that shows on stderr how far the loop over its argument is."""
    return lambda values: tqdm(values, desc=what, file=sys.stderr, mininterval=0.5, leave=False)
