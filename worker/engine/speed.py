"""How the shared calls of one model are made: by its modules, compiled, or recorded and repeated."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from worker.engine.buckets import WIDTHS, bucket, cut, lengthened, padded
from worker.engine.calls import Joined, Runner
from worker.engine.compiled import Compiled
from worker.engine.embeddings import EmbeddingCache
from worker.engine.graphs import CudaRecorder, Graphs, Recorder
from worker.engine.keys import Stepped
from worker.engine.lessons import Lesson
from worker.pipelines.loading import LoadedModel

_KEPT_AS = "speed"


class Speed:
    """What the options of a model make of its calls. Requests that share nothing never come here."""

    def __init__(self, model: LoadedModel, *, recorder: Recorder | None = None, backend: str = "inductor") -> None:
        """`recorder`: of another device than the model's; `backend`: of the compiler."""
        options = model.entry.options
        if options.graphs and recorder is None:
            recorder = CudaRecorder(model.device)
        self.embeddings = EmbeddingCache(options.embedding_cache)
        #: Of denoiser calls; None where the module itself is called.
        self.runner: Runner | None = None
        self._graphs: Graphs | None = None
        if recorder is not None or options.compile:
            calls = PreparedCalls(compiles=options.compile, recorder=recorder, backend=backend)
            self.runner, self._graphs = calls, calls.graphs
        #: The autoencoder's `decode`, compiled.
        self.decoder = Compiled(model.pipeline.vae.decode, "decoder", backend=backend) if options.compile else None
        self._vae_batch = options.vae_batch

    def give_back(self) -> None:
        """Give back what memory is held to save time, for somebody who found too little."""
        if self._graphs is not None:
            self._graphs.drop()

    def decode_key(self, alike: Hashable, rows: int) -> Hashable:
        """Return the key of decodes that are alike otherwise, each counting as so many rows."""
        most = self._vae_batch
        if self.decoder is not None:
            return Stepped(alike, tuple(rows * width for width in WIDTHS if most is None or width <= most))
        return alike if most is None else Stepped(alike, tuple(rows * n for n in range(1, most + 1)))


def speed_of(model: LoadedModel) -> Speed:
    """Return the model's, made at its first call and gone with what is kept beside the model."""
    if _KEPT_AS not in model.kept:
        model.kept[_KEPT_AS] = Speed(model)
    return model.kept[_KEPT_AS]


def decode_padded(decoder: Compiled, latents: torch.Tensor, *, on_prepare: Callable[[], None]) -> torch.Tensor:
    """Return the pictures of latents by a compiled decoder, which knows few numbers of them; see `Runner.run`."""
    missing = bucket(len(latents)) - len(latents)
    joined = lengthened(latents, missing) if missing else latents
    if decoder.is_new(joined, return_dict=False):
        on_prepare()
    return decoder(joined, return_dict=False)[0][: len(latents)]


class PreparedCalls:
    """Denoiser calls of few widths, compiled, recorded, or both."""

    widths: tuple[int, ...] = WIDTHS

    def __init__(self, *, compiles: bool, recorder: Recorder | None, backend: str = "inductor") -> None:
        self._compiles = compiles
        self._backend = backend
        #: By the id of their module, which each keeps.
        self._compiled: dict[int, Compiled] = {}
        #: None where nothing is recorded.
        self.graphs = Graphs(self._make, recorder) if recorder is not None else None

    def run(self, module: torch.nn.Module, joined: Joined, *, on_prepare: Callable[[], None]) -> tuple[Any, Lesson]:
        """See the protocol. A recording takes a second, which nobody need be told."""
        wide = padded(joined)
        is_new = self._compiles and self._compiled_of(module).is_new(**wide.arguments())
        if is_new:
            on_prepare()
        if self.graphs is None:
            returned, lesson = self._make(module, wide), Lesson.EVERYTHING
        else:
            returned, lesson = self.graphs.run(module, wide)
        return cut(returned, joined.rows), Lesson.NOTHING if is_new else lesson

    def _make(self, module: torch.nn.Module, joined: Joined) -> Any:
        made = self._compiled_of(module) if self._compiles else module
        return made(**joined.arguments())

    def _compiled_of(self, module: torch.nn.Module) -> Compiled:
        if id(module) not in self._compiled:
            self._compiled[id(module)] = Compiled(module, type(module).__name__, backend=self._backend)
        return self._compiled[id(module)]
