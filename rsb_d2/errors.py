"""The one exception for what a user can mend, and what goes into its message."""


class UserError(ValueError):
    """A mistake in a config, a file or data, which the user can mend.

    The message says in one or two lines what is wrong, where (the key or the file), and what to
    write instead. Programs print it without a traceback and exit with a status that is not 0.
    """


def printable(text: str) -> str:
    """Text from a file for a message: what breaks a line, or cannot be printed, is escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
