"""Why a model is not served, or a request not drawn.

├── UnusableModel    the operator can mend it: the catalogue or the folder
└── Refusal          one request ends without its pictures; the engine goes on
"""

from __future__ import annotations

from typing import Literal

from service.contract.errors import FailureCode


class UnusableModel(Exception):
    """The model cannot be served; the message says what was found, what is supported and what to do."""


class Refusal(Exception):
    """This request ends without its pictures. The message is for the caller: no path, no prompt, no traceback."""

    def __init__(self, code: FailureCode | Literal["canceled"], message: str) -> None:
        super().__init__(message)
        self.code: FailureCode | Literal["canceled"] = code
        self.message = message
