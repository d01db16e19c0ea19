"""Which models have to go when another needs room."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.clock import Clock
from worker.engine.worth import HALF_LIFE_S, Worth, victims


@dataclass(eq=False)
class Model:
    name: str
    worth: Worth
    leaving: bool = False


@dataclass
class Shop:
    """Models by the name of a test's choice."""

    clock: Clock = field(default_factory=Clock)
    models: list[Model] = field(default_factory=list)

    def add(self, name: str, *, size: int, reload_s: float = 1.0, uses: int = 0) -> Model:
        model = Model(name, Worth(self.clock))
        model.worth.size_bytes, model.worth.reload_s = size, reload_s
        for _ in range(uses):
            model.worth.used()
        self.models.append(model)
        return model

    def go(self, needed: int, budget: int) -> str:
        return "".join(model.name for model in victims(self.models, needed, budget))


def test_nobody_goes_where_there_is_room() -> None:
    shop = Shop()
    shop.add("a", size=4)
    shop.add("b", size=4)
    assert shop.go(2, 10) == ""
    assert shop.go(3, 10) != ""


def test_the_least_used_goes_first_and_no_more_than_have_to() -> None:
    shop = Shop()
    shop.add("a", size=4, uses=3)
    shop.add("b", size=4, uses=1)
    shop.add("c", size=4, uses=2)
    assert shop.go(4, 12) == "b"
    assert shop.go(5, 12) == "bc"
    assert shop.go(12, 12) == "bca"


def test_what_is_slow_to_read_stays_and_what_is_large_goes() -> None:
    shop = Shop()
    shop.add("a", size=4, reload_s=9, uses=1)
    shop.add("b", size=4, reload_s=1, uses=2)
    assert shop.go(4, 8) == "b"
    shop.add("c", size=40, reload_s=9, uses=1)
    assert shop.go(4, 48) == "c"


def test_uses_are_forgotten_with_time() -> None:
    shop = Shop()
    shop.add("a", size=4, uses=5)
    shop.clock.now_s += 3 * HALF_LIFE_S
    shop.add("b", size=4, uses=1)
    assert shop.go(4, 8) == "a"


def test_one_that_is_leaving_already_goes_before_all_others() -> None:
    shop = Shop()
    shop.add("a", size=4)
    shop.add("b", size=4, uses=9).leaving = True
    assert shop.go(4, 8) == "b"


def test_a_model_that_is_larger_than_the_budget_is_tried_alone() -> None:
    shop = Shop()
    assert shop.go(100, 8) == ""
    shop.add("a", size=4, uses=9)
    assert shop.go(100, 8) == "a"
