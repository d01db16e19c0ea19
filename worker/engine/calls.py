"""A call of a denoiser, as a pipeline makes it, and how several become one.

Rows of a call are independent: a U-Net or a transformer gives row i of its batch what it would give it alone, up to
the rounding of differently shaped sums. So calls may be joined where everything but the rows is equal: the module, the
names of the arguments, every tensor's shape behind its first dimension and its number format, and every plain value.
Prompts, timesteps and noise are rows; guidance, samplers and step counts are not in the call at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from service.contract.costs import CallLabel
from worker.engine.keys import Alone, Stepped
from worker.engine.lessons import Lesson

#: Positional arguments of every denoiser of diffusers.
_POSITIONAL = ("sample", "timestep")
#: The timestep of a call may be one number for all its rows; joined, every row has its own.
_TIMESTEP = "timestep"
#: Position ids of FLUX: no rows in them. They are joined where they are equal.
_WITHOUT_ROWS = frozenset({"txt_ids", "img_ids"})

#: The attribute of a tensor without rows that keeps its content.
_CONTENT = "_darkroom_content"

#: Where a value stands in the arguments or in what a module returns: names and indices, from the outside in.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """The arguments of a call of several requests."""

    leaves: Mapping[Path, Any]
    #: Where a tensor has one row for each of the call's; others are given to all rows alike.
    with_rows: frozenset[Path]
    rows: int
    #: The nesting of the leaves.
    _like: Mapping[str, Any] = field(repr=False)

    def arguments(self, leaves: Mapping[Path, Any] | None = None) -> dict[str, Any]:
        """Return the keyword arguments of the call, with other leaves where they are given."""
        return rebuilt(self._like, self.leaves if leaves is None else leaves)

    def but(self, leaves: Mapping[Path, Any], rows: int) -> Joined:
        """Return the call with other leaves of other rows."""
        return Joined(leaves, self.with_rows, rows, self._like)


class Runner(Protocol):
    """Makes calls in another way than by calling the module: compiled, or recorded and repeated."""

    #: Rows that its calls have; those between are padded by it.
    widths: tuple[int, ...]

    def run(self, module: torch.nn.Module, joined: Joined, *, on_prepare: Callable[[], None]) -> tuple[Any, Lesson]:
        """Return what the module returns, equal but for rounding, and what the call teaches.

        `on_prepare` is called first where the call must be prepared, which takes seconds to minutes.
        """
        ...


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
        runner: Runner | None = None,
        on_prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """`alone`: share this call with no other, whatever it costs, and make it as the pipeline would.

        `runner` makes all other calls; `on_prepare` is called where that begins with minutes of preparation.
        """
        self.label = label
        self._module, self._args, self._kwargs = module, args, kwargs
        self._named = dict(zip(_POSITIONAL, args, strict=False)) | dict(kwargs)
        self.leaves = dict(leaves_of(self._named))
        self.rows = _count_rows(self.leaves)
        understood = len(args) <= len(_POSITIONAL)
        signature = (id(module), *self._signature())
        self._runner = None if alone or not understood else runner
        self.on_prepare = on_prepare
        self.lesson = Lesson.EVERYTHING
        self.key: Hashable = signature
        if alone or not understood:
            self.key = Alone(signature)
        elif runner is not None:
            self.key = Stepped(signature, runner.widths)

    def alone(self) -> Any:
        """Return what the module returns for the call as the pipeline made it."""
        if self._runner is not None:
            return self._joined([self], self._runner)[0]
        return self._module(*self._args, **self._kwargs)

    def together(self, works: Sequence[DenoiserCall]) -> list[Any]:
        """Return each call's rows of what the module returns for all of them at once."""
        if len(works) == 1:
            return [works[0].alone()]
        return self._joined(works, self._runner)

    def _joined(self, works: Sequence[DenoiserCall], runner: Runner | None) -> list[Any]:
        leaves = {path: _join(path, [work.leaves[path] for work in works], works) for path in self.leaves}
        if runner is None:
            returned = self._module(**rebuilt(self._named, leaves))
        else:
            joined = self._described(leaves, sum(work.rows for work in works))
            returned, self.lesson = runner.run(self._module, joined, on_prepare=functools.partial(_tell, works))
        sizes = [work.rows for work in works]
        parts = {path: leaf.split(sizes) for path, leaf in leaves_of(returned) if isinstance(leaf, torch.Tensor)}
        return [rebuilt(returned, {path: split[i] for path, split in parts.items()}) for i in range(len(works))]

    def _described(self, leaves: dict[Path, Any], rows: int) -> Joined:
        """Return the joined call as a runner takes it: its timesteps in one format, so that samplers share it."""
        with_rows = {
            path
            for path, leaf in self.leaves.items()
            if path[-1] == _TIMESTEP or (isinstance(leaf, torch.Tensor) and _has_rows(path, leaf, self.rows))
        }
        leaves = {path: leaf.float() if path[-1] == _TIMESTEP else leaf for path, leaf in leaves.items()}
        return Joined(leaves, frozenset(with_rows), rows, self._named)

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


def _tell(works: Sequence[DenoiserCall]) -> None:
    for work in works:
        work.on_prepare()


def leaves_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what stands at the ends of nested dicts, lists and tuples (`ModelOutput` is a dict), with its place."""
    if isinstance(value, Mapping):
        for name in value:
            yield from leaves_of(value[name], (*path, name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves_of(item, (*path, index))
    else:
        yield path, value


def rebuilt(value: Any, leaves: Mapping[Path, Any], path: Path = ()) -> Any:
    """Return the same nesting with the leaves that are given in place of its own."""
    if isinstance(value, Mapping):
        make: Callable[..., Any] = dict if type(value) is dict else lambda items: type(value)(**items)
        return make({name: rebuilt(value[name], leaves, (*path, name)) for name in value})
    if isinstance(value, (list, tuple)):
        return type(value)([rebuilt(item, leaves, (*path, index)) for index, item in enumerate(value)])
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
    """Return the numbers themselves, as bytes.

    A pipeline hands over the same few small tensors at every step. What was read of one is kept with it, until it is
    written to: reading would make the host wait for a GPU each time.
    """
    version, content = getattr(tensor, _CONTENT, (None, b""))
    if version != tensor._version:  # noqa: SLF001 - autograd's count of writes has no other name
        version = tensor._version  # noqa: SLF001 - see above
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        setattr(tensor, _CONTENT, (version, content))
    return content
