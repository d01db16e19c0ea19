"""A call of a denoiser, as a pipeline makes it, and how several become one.

Rows of a call are independent: a U-Net or a transformer gives row i of its batch what it would give it alone, up to
the rounding of differently shaped sums. So calls may be joined where everything but the rows is equal: the module, the
names of the arguments, every tensor's shape behind its first dimension and its number format, and every plain value.
Prompts, timesteps and noise are rows; guidance, samplers and step counts are not in the call at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from service.contract.costs import CallLabel
from worker.engine.keys import Alone

#: Positional arguments of every denoiser of diffusers.
_POSITIONAL = ("sample", "timestep")
#: The timestep of a call may be one number for all its rows; joined, every row has its own.
_TIMESTEP = "timestep"
#: Position ids of FLUX: no rows in them. They are joined where they are equal.
_WITHOUT_ROWS = frozenset({"txt_ids", "img_ids"})

#: Where a value stands in the arguments or in what a module returns: names and indices, from the outside in.
Path = tuple[str | int, ...]


class DenoiserCall:
    """One parked call: the module with the arguments that the pipeline gave it."""

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        alone: bool,
        label: CallLabel | None = None,
    ) -> None:
        """`alone`: share this call with no other, whatever it costs."""
        self.label = label
        self._module, self._args, self._kwargs = module, args, kwargs
        self._named = dict(zip(_POSITIONAL, args, strict=False)) | dict(kwargs)
        self.leaves = dict(_leaves(self._named))
        self.rows = _count_rows(self.leaves)
        understood = len(args) <= len(_POSITIONAL)
        signature = (id(module), *self._signature())
        self.key: Hashable = Alone(signature) if alone or not understood else signature

    def alone(self) -> Any:
        """Return what the module returns for the call as the pipeline made it."""
        return self._module(*self._args, **self._kwargs)

    def together(self, works: Sequence[DenoiserCall]) -> list[Any]:
        """Return each call's rows of what the module returns for all of them at once."""
        if len(works) == 1:
            return [works[0].alone()]
        joined = {path: _join(path, [work.leaves[path] for work in works], works) for path in self.leaves}
        returned = self._module(**_rebuilt(self._named, joined))
        sizes = [work.rows for work in works]
        parts = {path: leaf.split(sizes) for path, leaf in _leaves(returned) if isinstance(leaf, torch.Tensor)}
        return [_rebuilt(returned, {path: split[i] for path, split in parts.items()}) for i in range(len(works))]

    def _signature(self) -> Iterator[Hashable]:
        for path, leaf in self.leaves.items():
            if not isinstance(leaf, torch.Tensor):
                yield path, type(leaf), leaf if isinstance(leaf, Hashable) else id(leaf)
            elif path[-1] == _TIMESTEP:
                yield path, str(leaf.device)
            elif not _has_rows(path, leaf, self.rows):
                yield path, tuple(leaf.shape), _content(leaf)
            else:
                yield path, tuple(leaf.shape[1:]), leaf.dtype, str(leaf.device)


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what stands at the ends of nested dicts, lists and tuples (`ModelOutput` is a dict), with its place."""
    if isinstance(value, Mapping):
        for name in value:
            yield from _leaves(value[name], (*path, name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def _rebuilt(value: Any, leaves: Mapping[Path, Any], path: Path = ()) -> Any:
    """Return the same nesting with the leaves that are given in place of its own."""
    if isinstance(value, Mapping):
        make: Callable[..., Any] = dict if type(value) is dict else lambda items: type(value)(**items)
        return make({name: _rebuilt(value[name], leaves, (*path, name)) for name in value})
    if isinstance(value, (list, tuple)):
        return type(value)([_rebuilt(item, leaves, (*path, index)) for index, item in enumerate(value)])
    return leaves.get(path, value)


def _count_rows(leaves: Mapping[Path, Any]) -> int:
    for path, leaf in leaves.items():
        if isinstance(leaf, torch.Tensor) and leaf.dim() and path[-1] not in _WITHOUT_ROWS and path[-1] != _TIMESTEP:
            return leaf.shape[0]
    raise TypeError("a denoiser was called without latents")


def _has_rows(path: Path, tensor: torch.Tensor, rows: int) -> bool:
    """Return whether the tensor has one row for each of the call's; others are given to all rows alike."""
    return tensor.dim() > 0 and tensor.shape[0] == rows and path[-1] not in _WITHOUT_ROWS


def _join(path: Path, values: Sequence[Any], works: Sequence[DenoiserCall]) -> Any:
    first = values[0]
    if path[-1] == _TIMESTEP:
        return _join_timesteps(values, works)
    if not isinstance(first, torch.Tensor) or not _has_rows(path, first, works[0].rows):
        return first
    return torch.cat(list(values))


def _join_timesteps(values: Sequence[Any], works: Sequence[DenoiserCall]) -> torch.Tensor:
    """Return one timestep a row; in float32, as which they are embedded, where schedulers disagree on the format."""
    device = next(leaf.device for leaf in works[0].leaves.values() if isinstance(leaf, torch.Tensor) and leaf.dim())
    rows = [
        torch.as_tensor(value, device=device).reshape(-1).expand(work.rows)
        for value, work in zip(values, works, strict=True)
    ]
    if len({row.dtype for row in rows}) > 1:
        rows = [row.float() for row in rows]
    return torch.cat(rows)


def _content(tensor: torch.Tensor) -> bytes:
    """Return the numbers themselves. A pipeline hands over the same few small tensors at every step."""
    if tensor.dim() == 0:
        return repr(tensor.item()).encode()
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
