"""A recorder for devices without graphs: it repeats a call by making it again, on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worker.engine.calls import leaves_of
from worker.engine.graphs import NotRecorded


class Rerun:
    """As hard to please as CUDA: what is repeated sees what lies in the recording's memory, and nothing else."""

    def __init__(self, *, refuses: int = 0) -> None:
        """`refuses`: so many recordings fail first."""
        self.recorded = 0
        self.repeated = 0
        self._refuses = refuses

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """See the protocol."""
        if self._refuses:
            self._refuses -= 1
            raise NotRecorded("OutOfMemoryError")
        self.recorded += 1
        result = call()
        places = dict(leaves_of(result))

        def repeat() -> None:
            self.repeated += 1
            for path, leaf in leaves_of(call()):
                if isinstance(leaf, torch.Tensor):
                    places[path].copy_(leaf)

        return repeat, result
