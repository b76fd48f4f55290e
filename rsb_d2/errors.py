"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake in a config, a file or data, which the user can mend.

    The message says in one or two lines what is wrong, where (the key or the file), and what to
    write instead. Programs print it without a traceback and exit with a status that is not 0.
    """
