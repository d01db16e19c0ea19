"""Several models in one engine: loaded where there is room, evicted for others, and nobody waits for good."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.contract.catalog import CatalogEntry
from tests.house import House
from tests.models import LIBRARY_WARNINGS, tiny_model
from tests.sums import Device, count, engine_thread
from worker.engine import residency
from worker.engine.memory import size_bytes
from worker.engine.shelf import Shelf, pinned_bytes
from worker.engine.strands import pause
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, Prepared, load

pytestmark = LIBRARY_WARNINGS

#: More than one of the tiny models, less than two.
ROOM_FOR_ONE = 2_000_000
ROOM_FOR_ALL = 1 << 30


@pytest.fixture(autouse=True)
def _engine_thread() -> Iterator[None]:
    with engine_thread():
        yield


def weight_of(model: LoadedModel) -> float:
    return float(next(model.pipeline.unet.parameters()).flatten()[0])


def test_models_are_loaded_one_after_the_other_while_there_is_room() -> None:
    house = House(budget_bytes=ROOM_FOR_ALL)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b loaded")
    assert house.words == ["a loading", "b loading", "a loaded", "b loaded"]


def test_what_finds_no_room_stays_cold_until_it_is_wanted_and_then_takes_the_others_place() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b cold")
    house.ask("one", "b", weight_of)
    house.run_until_ended("one")
    assert house.words[-5:] == ["one waits", "b loading", "a cold", "b loaded", "one has b"]
    house.ask("two", "a", weight_of)
    house.run_until_ended("two")
    assert house.words[-5:] == ["two waits", "a loading", "b cold", "a loaded", "two has a"]
    assert house.ends["two"] == weight_of(load_tiny("sd15"))
    assert house.ends["one"] == weight_of(load_tiny("sd21"))


def load_tiny(name: str) -> LoadedModel:
    return load(CatalogEntry(id="x", source=str(tiny_model(name))))


def test_an_evicted_model_leaves_nothing_behind() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    seen: list[weakref.ref[torch.nn.Module]] = []
    house.ask("one", "a", lambda model: seen.append(weakref.ref(model.pipeline.unet)))
    house.run_until_ended("one")
    house.ask("two", "b", weight_of)
    house.run_until_ended("two")
    gc.collect()
    assert seen[0]() is None


def test_one_in_use_is_let_out_first_and_who_comes_meanwhile_waits_its_turn() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b cold")
    device = Device()
    house.ask("long", "a", lambda _: count(device, "long", steps=30))
    house.run(lambda: len(device.calls) > 3)
    house.ask("other", "b", lambda _: count(device, "other", steps=2))
    house.run_until_said("other waits")
    house.ask("late", "a", lambda _: count(device, "late", steps=2))
    house.run_until_ended("long", "other", "late")
    assert house.ends == {"long": 30, "other": 2, "late": 2}
    order = [word for word in house.words if " has " in word or word.endswith(("cold", "loaded"))]
    assert order[2:] == ["long has a", "a cold", "b loaded", "other has b", "b cold", "a loaded", "late has a"]


def test_others_are_drawn_while_a_model_is_loaded() -> None:
    house = House(budget_bytes=ROOM_FOR_ALL)
    house.offer("a", tiny_model("sd15"))
    house.run_until_said("a loaded")
    device = Device()
    house.ask("long", "a", lambda _: count(device, "long", steps=1 << 40))
    house.run(lambda: len(device.calls) > 3)
    house.offer("b", tiny_model("sdxl"))
    at_each: list[int] = []
    while "b loaded" not in house.words:
        house.tick()
        at_each.append(len(device.calls))
    # Text encoders, denoiser, autoencoder, and the parts of each: a call between any two.
    assert at_each[-1] - at_each[0] > 20
    assert "long" not in house.ends


def test_one_that_is_canceled_while_it_waits_is_let_go_and_the_model_is_free_for_others() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b cold")
    waiting = house.ask("gone", "b", weight_of)
    house.run_until_said("gone waits")
    house.batch.hub.stop(waiting, Refusal("canceled", "Canceled."))
    house.run_until_ended("gone")
    assert isinstance(house.ends["gone"], Refusal)
    # And one that is canceled when its model is there already, in the moment before it goes on.
    house.run_until_said("b loaded")
    house.ask("next", "a", weight_of)
    house.run_until_ended("next")
    assert house.words[-1] == "next has a"


def test_one_that_is_canceled_between_its_models_coming_and_its_going_on_counts_as_nobody() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    strand = house.ask("gone", "a", weight_of)
    told = house.residency._tell

    def stop_at_once(word: object) -> None:
        told(word)  # type: ignore[arg-type]
        if house.words[-1] == "a loaded":
            house.batch.hub.start(lambda: house.batch.hub.stop(strand, Refusal("canceled", "Canceled.")))

    house.residency._tell = stop_at_once
    house.run_until_ended("gone")
    assert isinstance(house.ends["gone"], Refusal)
    house.residency._tell = told
    house.offer("b", tiny_model("sd21"))
    house.ask("next", "b", weight_of)
    house.run_until_ended("next")
    assert house.words[-1] == "next has b"
    assert "a cold" in house.words


def test_a_model_that_cannot_be_read_any_more_refuses_its_request_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("sd21"), folder)
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", folder)
    house.run_until_said("a loaded", "b cold")
    folder.rename(tmp_path / "away")
    house.ask("one", "b", weight_of)
    house.run_until_ended("one")
    refusal = house.ends["one"]
    assert isinstance(refusal, Refusal)
    assert refusal.code == "model_unavailable"
    assert str(tmp_path) not in refusal.message
    house.ask("two", "a", weight_of)
    (tmp_path / "away").rename(folder)
    house.ask("three", "b", weight_of)
    house.run_until_ended("two", "three")
    assert house.ends["three"] == weight_of(load_tiny("sd21"))


def test_files_that_changed_since_they_were_checked_are_checked_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("sd21"), folder)
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", folder)
    house.run_until_said("a loaded", "b cold")
    before = load_tiny("sd21").card.sha256
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    house.ask("one", "b", lambda model: model.card.sha256)
    house.run_until_ended("one")
    assert len(house.ends["one"]) == 64
    assert house.ends["one"] != before


def test_a_model_that_does_not_fit_though_it_should_sends_others_away(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(budget_bytes=ROOM_FOR_ALL)
    house.offer("a", tiny_model("sd15"))
    house.run_until_said("a loaded")
    real, tries = residency.assemble, iter([torch.OutOfMemoryError("CUDA out of memory"), None])

    def assemble(*arguments: object, **named: object) -> LoadedModel:
        if (error := next(tries)) is not None:
            raise error
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(residency, "assemble", assemble)
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("b loaded")
    assert house.words[-3:] == ["b loading", "a cold", "b loaded"]


def test_a_model_that_was_put_on_the_shelf_comes_back_the_same() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE, shelf_bytes=ROOM_FOR_ALL)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    loaded: list[LoadedModel] = []
    for name, model in (("one", "a"), ("two", "b"), ("three", "a")):
        house.ask(name, model, lambda model: loaded.append(model) or weight_of(model))
        house.run_until_ended(name)
        loaded[-1].kept["recorded"] = "where the weights are now"
    first, _, third = loaded
    assert third is not first
    assert first.kept == {}
    assert third.pipeline is first.pipeline
    assert third.preview is first.preview is not None
    assert house.ends["three"] == house.ends["one"] == weight_of(load_tiny("sd15"))


def test_one_that_ends_while_another_is_evicted_keeps_nobody_waiting() -> None:
    house = House(budget_bytes=ROOM_FOR_ALL, shelf_bytes=ROOM_FOR_ALL)
    for model, name in (("a", "sd15"), ("b", "sd21"), ("c", "sd15_lcm")):
        house.offer(model, tiny_model(name))
    house.run_until_said("a loaded", "b loaded", "c loaded")
    house.ask("before", "a", weight_of)
    house.run_until_ended("before")

    def until_b_goes(_: LoadedModel) -> str:
        while "b cold" not in house.words:
            pause()
        return "ended"

    house.offer("d", tiny_model("sdxl"))
    house.ask("long", "a", until_b_goes)
    house.residency._budget_bytes = 1
    house.ask("other", "d", lambda _: "drawn")
    house.run_until_ended("long", "other")
    assert house.ends["other"] == "drawn"
    evicted = [word for word in house.words if word.endswith("cold")]
    assert set(evicted) == {"a cold", "b cold", "c cold"}
    assert evicted[-1] == "a cold", "the one in use is the last to go"


def slow_preparations(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let preparations that begin from now on end when the event is set."""
    gate, real = threading.Event(), residency.prepare

    def prepare(entry: CatalogEntry) -> Prepared:
        assert gate.wait(60)
        return real(entry)

    monkeypatch.setattr(residency, "prepare", prepare)
    return gate


def test_files_that_change_while_their_model_leaves_and_is_wanted_are_checked_before_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("sd15"), folder)
    house = House(budget_bytes=ROOM_FOR_ONE)
    house.offer("a", folder)
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b cold")
    device = Device()
    house.ask("long", "a", lambda model: (count(device, "long", steps=10), model.card.sha256))
    house.run(lambda: len(device.calls) > 1)
    house.ask("other", "b", weight_of)
    house.run_until_said("other waits")
    house.ask("late", "a", lambda model: model.card.sha256)
    house.run_until_said("late waits")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    checked = slow_preparations(monkeypatch)
    house.run_until_ended("long", "other")
    checked.set()
    house.run_until_ended("late")
    assert house.ends["late"] != house.ends["long"][1]
    assert len(house.ends["late"]) == 64


def test_a_model_whose_files_change_while_it_is_read_is_not_said_to_be_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("sd15"), folder)
    house = House(budget_bytes=1)
    house.offer("a", folder)
    house.run(lambda: house.residency._loader is not None)
    for _ in range(3):
        house.tick()
    checked = slow_preparations(monkeypatch)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    house.ask("one", "a", weight_of)
    house.run_until_ended("one")
    checked.set()
    house.run(lambda: not house.residency._places["a"].preparing)
    assert house.words[-1] == "one has a"
    assert "a cold" not in house.words


def test_a_machine_without_memory_for_what_left_the_device_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(budget_bytes=ROOM_FOR_ONE, shelf_bytes=ROOM_FOR_ALL)
    house.offer("a", tiny_model("sd15"))
    house.offer("b", tiny_model("sd21"))
    house.run_until_said("a loaded", "b cold")

    def put(*_arguments: object, **_named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Shelf, "put", put)
    for name, model in (("one", "b"), ("two", "a")):
        house.ask(name, model, weight_of)
        house.run_until_ended(name)
    assert house.ends == {"one": weight_of(load_tiny("sd21")), "two": weight_of(load_tiny("sd15"))}


def test_pinned_memory_of_the_shelf_is_counted_as_torch_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_tiny("sd15")
    assert size_bytes(model) < pinned_bytes(model) < 2 * size_bytes(model)
    shelf = Shelf(pinned_bytes(model) - 1)
    shelf.put(model, between=pause)
    assert shelf.take(model.card.id, model.card.sha256, between=pause) is None
    emptied: list[int] = []
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: emptied.append(1))
    for held_bytes, times in ((0, 0), (1, 1)):
        monkeypatch.setattr(
            torch.cuda, "host_memory_stats", lambda held_bytes=held_bytes: {"allocated_bytes.current": held_bytes}
        )
        shelf = Shelf(pinned_bytes(model))
        shelf.put(model, between=pause)
        assert shelf.take(model.card.id, model.card.sha256, between=pause) is not None
        assert len(emptied) == times


def test_an_unknown_model_is_refused() -> None:
    house = House(budget_bytes=ROOM_FOR_ALL)
    house.ask("one", "nowhere", weight_of)
    house.run_until_ended("one")
    assert house.ends["one"].code == "model_unavailable"


def test_many_requests_for_three_models_in_one_place_all_end() -> None:
    house = House(budget_bytes=ROOM_FOR_ONE)
    for model, name in (("a", "sd15"), ("b", "sd21"), ("c", "sd15_lcm")):
        house.offer(model, tiny_model(name))

    def work(_: LoadedModel) -> str:
        for _turn in range(3):
            pause()
        return "done"

    names = [f"{model}{n}" for n in range(4) for model in "abc"]
    for name in names:
        house.ask(name, name[0], work)
    house.run_until_ended(*names)
    assert set(house.ends.values()) == {"done"}
    # They did not take turns one by one: whoever waits for the same model is served together.
    assert sum(word.endswith("loaded") for word in house.words) <= 6


def test_the_size_of_a_model_is_that_of_its_weights() -> None:
    model = load_tiny("sd15")
    files = sum(path.stat().st_size for path in tiny_model("sd15").rglob("*.safetensors"))
    assert 0.8 * files < size_bytes(model) <= files
    assert files < ROOM_FOR_ONE < 2 * size_bytes(model)
