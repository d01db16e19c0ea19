"""What kind of fault an exception of torch is, and what to log about it."""

from __future__ import annotations

import gc
import traceback
from enum import Enum, auto

import structlog
import torch

log = structlog.get_logger()


class Fault(Enum):
    """What to do about an exception."""

    #: Free memory and try again.
    OUT_OF_MEMORY = auto()
    #: The device's state is unknown: the process must end.
    DEVICE = auto()
    #: A defect of ours or of the model; the engine itself is sound.
    OTHER = auto()


#: Allocators that raise a plain RuntimeError: CPU (Linux, Windows), MPS; and what libraries say of a GPU whose memory
#: torch's own allocator did not ask for. None of it leaves the device in doubt.
_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

_DEVICE_TEXTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "HIP error")


def classify(error: BaseException) -> Fault:
    """Return the kind of fault."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return Fault.OUT_OF_MEMORY
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(known in text for known in _MEMORY_TEXTS):
            return Fault.OUT_OF_MEMORY
        if any(known in text for known in _DEVICE_TEXTS):
            return Fault.DEVICE
    return Fault.OTHER


def free_memory() -> None:
    """Give back what nothing refers to any more. Of use outside of `except` only: a traceback holds its tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def report(event: str, error: BaseException, *, private: tuple[str, ...] = (), **fields: str) -> None:
    """Log an error with kind, text and stack, but without the private texts (prompts) or any local variable."""
    text = str(error)
    for secret in private:
        if secret:
            text = text.replace(secret, "***")
    stack = "".join(traceback.format_tb(error.__traceback__))
    log.error(event, error=type(error).__name__, reason=text[:500], stack=stack, **fields)
