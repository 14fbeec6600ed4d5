"""What is said to the user when something is wrong with the input rather than with the program."""


class LlucidError(ValueError):
    """Bad input: the message says what, where, and what to do. The command line prints it as one line and exits 2."""
