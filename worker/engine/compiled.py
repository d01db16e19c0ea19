"""Functions of a model, compiled for every shape that they meet.

Compiling takes from seconds to minutes, once for a shape; kernels are kept on disk (`TORCHINDUCTOR_CACHE_DIR`), so that
the next process takes a part of that. What is kept there is code that is run: the folder must be nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import structlog
import torch
from torch._dynamo import config as dynamo

from worker.engine.faults import Fault, classify

log = structlog.get_logger()

#: Shapes that one function is compiled for; torch's own bound of 8 is less than the widths of one size of picture.
_SHAPES = 128


class Compiled:
    """Calls a function, compiled; where that fails, the function itself, from then on."""

    def __init__(self, function: Callable[..., Any], name: str, *, backend: str = "inductor") -> None:
        """`name` is for the log; `backend` one of `torch.compiler.list_backends`."""
        dynamo.recompile_limit = max(_SHAPES, dynamo.recompile_limit)
        dynamo.accumulated_recompile_limit = max(4 * _SHAPES, dynamo.accumulated_recompile_limit)
        self._function = function
        self._name = name
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False, backend=backend)
        self._met: set[Hashable] = set()

    def is_new(self, *args: Any, **kwargs: Any) -> bool:
        """Return whether this call would have to be compiled first."""
        return self._compiled is not None and _shapes(args, kwargs) not in self._met

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns, up to rounding."""
        compiled = self._compiled
        if compiled is None:
            return self._function(*args, **kwargs)
        shapes = _shapes(args, kwargs)
        started_s = time.monotonic()
        if is_new := shapes not in self._met:
            log.info("compiling", function=self._name)
        try:
            result = compiled(*args, **kwargs)
        except Exception as err:
            if classify(err) is not Fault.OTHER:
                raise
            result = self._by_itself(err, args, kwargs)
        if is_new:
            self._met.add(shapes)
            log.info("compiled", function=self._name, seconds=round(time.monotonic() - started_s, 1))
        return result

    def _by_itself(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function itself; where that goes well the compiler was at fault, and is not asked again."""
        result = self._function(*args, **kwargs)
        self._compiled = None
        log.warning("not_compiled", function=self._name, error=type(error).__name__, reason=str(error)[:500])
        return result


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    return tuple(_described(args)) + tuple(_described(kwargs))


def _described(value: Any) -> Iterator[Hashable]:
    if isinstance(value, torch.Tensor):
        yield tuple(value.shape), value.dtype
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield name
            yield from _described(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _described(part)
