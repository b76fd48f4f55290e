"""The one exception for what a user can mend, and what goes into its message."""

from typing import Any, Iterable, List


class UserError(ValueError):
    """A mistake in a config, a file or data, which the user can mend.

    The message says in one or two lines what is wrong, where (the key or the file), and what to
    write instead. Programs print it without a traceback and exit with a status that is not 0.
    """


def printable(text: str) -> str:
    """Text from a file for a message: what breaks a line, or cannot be printed, is escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_utf8(text: str) -> bool:
    """Whether a text can be written; surrogates, as which Python reads other bytes, cannot."""
    return text == text.encode("utf-8", "ignore").decode("utf-8")


def first(values: Iterable[Any], count: int = 5) -> str:
    """Return the first values as text for a message: "3, 5, 8, 9, 12, ..."."""
    values = list(values)
    return ", ".join(printable(str(v)) for v in values[:count]) + (
        ", ..." if len(values) > count else ""
    )


def first_ids(ids: List[int]) -> str:
    """The first ids as text for a message: "first ids: 3, 5, 8, 9, 12, ..."."""
    return f"first ids: {first(ids)}" if len(ids) > 5 else f"ids: {first(ids)}"
