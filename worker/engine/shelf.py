"""Where evicted models wait: in the machine's memory, from which a GPU reads them back in a fraction of a second."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from worker.engine.faults import free_memory
from worker.pipelines.loading import LoadedModel

_HOST = torch.device("cpu")


class Shelf:
    """Keeps what left the device, the oldest given up for the newest.

    On devices that share the machine's memory nothing would be gained: `budget_bytes` is 0 there.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[str, tuple[LoadedModel, int]] = OrderedDict()

    def put(self, model: LoadedModel, between: Callable[[], None]) -> None:
        """Bring a model's weights into the machine's memory, if they fit there; else forget it.

        So is one forgotten that is offloaded: its weights lie there already, held by their hooks. `between` is called
        between its modules.
        """
        taken_bytes = pinned_bytes(model)
        if taken_bytes > self._budget_bytes or model.entry.options.offload != "none":
            return
        while taken_bytes + sum(size for _, size in self._models.values()) > self._budget_bytes:
            self._models.popitem(last=False)
        _give_back_pinned(taken_bytes, self._budget_bytes)
        # Recorded calls and encoded prompts lie on the device, too, and serve nobody here.
        model.kept.clear()
        for module in _modules(model):
            between()
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = _pinned(tensor.data.to(_HOST))
        self._models[model.card.id] = (model, taken_bytes)

    def take(self, model_id: str, sha256: str, between: Callable[[], None]) -> LoadedModel | None:
        """Return a model with its weights back on its device; None where it is not here in this very form.

        `between` is called between its modules. What fails on the way is lost, and has to be read from its files.
        """
        model, _ = self._models.pop(model_id, (None, 0))
        if model is None or model.card.sha256 != sha256:
            return None
        for module in _modules(model):
            between()
            module.to(model.device)
        # A new object: what was made for the modules where they were before (captured calls, caches) is not theirs now.
        return LoadedModel(
            entry=model.entry,
            card=model.card,
            pipeline=model.pipeline,
            scheduler=model.scheduler,
            device=model.device,
            dtype=model.dtype,
            # The few weights of its own never left the device.
            preview=model.preview,
        )


def pinned_bytes(model: LoadedModel) -> int:
    """Return what the weights of a model take in pinned memory, of which torch asks for powers of two: up to twice."""
    tensors = {id(t): t for module in _modules(model) for t in (*module.parameters(), *module.buffers())}
    return sum(1 << (t.numel() * t.element_size() - 1).bit_length() for t in tensors.values() if t.numel())


def _give_back_pinned(wanted_bytes: int, budget_bytes: int) -> None:
    """Let go of pinned memory that torch keeps for later, where there would be too much of it with what is wanted.

    It is kept by default, because to pin takes longer than to copy.
    """
    held_bytes = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    if held_bytes + wanted_bytes > budget_bytes:
        free_memory()  # what was forgotten above may still be held by circles of references
        torch.accelerator.empty_host_cache()


def _modules(model: LoadedModel) -> list[torch.nn.Module]:
    return [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in memory that the GPU reads directly, as long as the system gives any."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
