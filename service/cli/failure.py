"""How a command says that it did not do what it was asked."""

from __future__ import annotations


class CommandFailed(Exception):
    """The command ends here; the message is one line for people, the code what the shell sees."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
