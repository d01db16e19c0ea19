"""Looking at a picture while it is drawn changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from service.contract.engine import FromEngine, ImageDrawn, PreviewDrawn
from service.contract.framing import Buffer
from tests.fidelity.cases import ABILITIES, TASKS, Case
from tests.fidelity.engine import EngineSide
from tests.models import LIBRARY_WARNINGS
from worker.engine.drawing import Drawing

pytestmark = LIBRARY_WARNINGS


def drawn(side: EngineSide, case: Case, previews_s: float) -> tuple[list[bytes], int]:
    """Return the pictures of a case, and how many previews came."""
    pictures: list[bytes] = []
    previews: list[FromEngine] = []

    def send(message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
        if isinstance(message, ImageDrawn):
            pictures.extend(bytes(buffer) for buffer in buffers)
        elif isinstance(message, PreviewDrawn):
            previews.append(message)

    request = side.request(case, num_images=2).model_copy(update={"previews_s": previews_s})
    Drawing(side.model, request, case.buffers(), send=send, is_canceled=lambda: False).run()
    return pictures, len(previews)


@pytest.mark.parametrize(
    ("name", "scheduler"), [*((name, "euler_a") for name in ABILITIES), ("sd3", "flow_euler"), ("flux", "flow_euler")]
)
def test_pictures_are_equal_to_the_bit_with_and_without_previews(
    engine_side: Callable[[str], EngineSide], name: str, scheduler: str
) -> None:
    side = engine_side(name)
    for task in ABILITIES.get(name, TASKS):
        case = Case(task=task, scheduler=scheduler)  # pyright: ignore[reportArgumentType]
        without, none = drawn(side, case, 0.0)
        with_previews, some = drawn(side, case, 1e-9)
        assert none == 0
        assert some > 0
        assert len(without) == 2
        assert with_previews == without
