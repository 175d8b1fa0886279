"""The kind of error that the user can mend, as opposed to a bug of this package."""


class InputError(ValueError):
    """An option, a file or the environment is not as it must be; mending that is up to the user.

    The message is one sentence that names the option or file as the user gave it, its value, the condition and a way
    out. Commands print it without a traceback and end with exit code 1.
    """
