"""Prompts that were encoded before are not encoded again, and nobody gets another's embeddings or less exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from service.contract.catalog import CatalogEntry
from service.contract.generation import GenerationSpec
from tests.fidelity.cases import Case
from tests.fidelity.engine import EngineSide
from tests.fidelity.mixed import Guest, Mix
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.engine.embeddings import EmbeddingCache
from worker.pipelines.loading import load
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def spec(**changes: Any) -> GenerationSpec:
    return Case(**changes).spec("tiny")


def rows(value: float, *, width: int = 4) -> dict[str, torch.Tensor | None]:
    return {"prompt_embeds": torch.full((1, width), float(value)), "negative_prompt_embeds": None}


OTHERWISE: list[dict[str, Any]] = [
    {"prompt": "a green pear"},
    {"negative_prompt": "blurry"},
    {"prompt": "", "negative_prompt": "a red apple on a green background"},
    {"guidance_scale": 1.0},
]


@pytest.mark.parametrize("changes", OTHERWISE)
def test_what_embeddings_depend_on_keeps_requests_apart(changes: dict[str, Any]) -> None:
    cache = EmbeddingCache(8)
    cache.put(spec(), rows(1), exact=True)
    assert cache.get(spec(**changes), exact=False) is None


def test_every_request_with_these_prompts_gets_what_was_encoded() -> None:
    cache = EmbeddingCache(8)
    cache.put(spec(), rows(1), exact=True)
    other = spec(seed=7, steps=9, width=128, height=32, scheduler="euler", sigmas="karras", eta=0.5, deterministic=True)
    found = cache.get(other, exact=True)
    assert found is not None
    assert torch.equal(found["prompt_embeds"], torch.ones(1, 4))
    assert found["negative_prompt_embeds"] is None


def test_what_was_encoded_in_company_serves_no_exact_request_and_gives_way_to_what_is_exact() -> None:
    cache = EmbeddingCache(8)
    cache.put(spec(), rows(1), exact=False)
    assert cache.get(spec(), exact=True) is None
    assert cache.get(spec(), exact=False) is not None
    cache.put(spec(), rows(2), exact=True)
    cache.put(spec(), rows(3), exact=False)
    for exact in (True, False):
        found = cache.get(spec(), exact=exact)
        assert found is not None
        assert torch.equal(found["prompt_embeds"], torch.full((1, 4), 2.0))
    assert len(cache) == 1


def test_the_entry_that_was_not_asked_for_the_longest_goes_first() -> None:
    cache = EmbeddingCache(2)
    for n in range(2):
        cache.put(spec(prompt=f"{n}"), rows(n), exact=True)
    cache.get(spec(prompt="0"), exact=True)
    cache.put(spec(prompt="2"), rows(2), exact=True)
    assert [cache.get(spec(prompt=f"{n}"), exact=True) is not None for n in range(3)] == [True, False, True]


def test_entries_take_no_more_memory_than_they_may() -> None:
    cache = EmbeddingCache(100, most_bytes=1000)
    for n in range(5):
        cache.put(spec(prompt=f"{n}"), rows(n, width=100), exact=True)
    assert len(cache) == 2
    cache.put(spec(prompt="large"), rows(9, width=1000), exact=True)
    assert len(cache) == 0
    cache.put(spec(prompt="small"), rows(9), exact=True)
    assert len(cache) == 1


def test_a_row_of_a_shared_call_does_not_keep_the_rest_of_it() -> None:
    cache = EmbeddingCache(1)
    shared = torch.zeros(64, 4)
    cache.put(spec(), {"prompt_embeds": shared[3:4]}, exact=False)
    found = cache.get(spec(), exact=False)
    assert found is not None
    assert found["prompt_embeds"].untyped_storage().nbytes() == 16


def test_none_are_kept_where_none_are_wanted() -> None:
    cache = EmbeddingCache(0)
    cache.put(spec(), rows(1), exact=True)
    assert (len(cache), cache.get(spec(), exact=False)) == (0, None)


def test_prompts_are_not_kept() -> None:
    cache = EmbeddingCache(8)
    cache.put(spec(prompt="a fox in the snow"), rows(1), exact=True)
    assert "fox" not in repr(vars(cache))


def side_of(**options: Any) -> EngineSide:
    return EngineSide(load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")), options=options)))


@contextmanager
def counted(side: EngineSide) -> Iterator[list[int]]:
    """Give the rows of every call of the text encoder."""
    calls: list[int] = []
    encoder = side.model.pipeline.text_encoder
    handle = encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        handle.remove()


def test_a_request_whose_prompts_were_encoded_calls_no_encoder_and_draws_the_same() -> None:
    side, case = side_of(), Case(deterministic=True)
    with counted(side) as calls:
        first, _ = side.draw(case)
        assert calls
        calls.clear()
        again, _ = side.draw(case)
        assert not calls
        side.draw(case.but(prompt="a green pear"))
        assert calls
    assert (first[0] == again[0]).all()


def test_a_model_that_keeps_no_embeddings_encodes_every_time() -> None:
    side = side_of(embedding_cache=0)
    with counted(side) as calls:
        side.draw(Case())
        once = len(calls)
        side.draw(Case())
    assert len(calls) == 2 * once > 0


def test_a_deterministic_request_is_not_drawn_from_what_was_encoded_in_company() -> None:
    side = side_of()
    mix = Mix(side)
    for n in range(3):
        mix.join(Guest(Case(prompt=f"apple {n}")))
    mix.finish()
    exact, unused = Case(prompt="apple 0", deterministic=True), side_of(embedding_cache=0)
    with counted(side) as calls:
        drawn, _ = side.draw(exact)
    assert calls
    assert (drawn[0] == unused.draw(exact)[0][0]).all()
    with counted(side) as calls:
        side.draw(Case(prompt="apple 0"))
        side.draw(exact)
    assert not calls
