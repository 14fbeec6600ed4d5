"""What is said to the user when something is wrong with the input rather than with the program."""


class LlucidError(ValueError):
    """Bad input: the message says what, where, and what to do. The command line prints it as one line and exits 2."""


def one_line(error: Exception) -> str:
    """The error's message; of one of the system's, the file and the reason."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(said.split())
