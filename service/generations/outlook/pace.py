"""How long steps of requests take that are drawn together, by what calls were measured to cost. Pure.

Requests of one model and size share a denoiser call, which takes the longer the more rows it has, though less than by
rows alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.contract.catalog import ModelCard
from service.contract.costs import CallCost, short_digest
from service.contract.generation import GenerationSpec
from service.contract.steps import denoiser_calls, steps_run
from service.generations.estimate import encoded_pictures, piece_s

#: Works that are remembered.
_REMEMBERED = 16_384


@dataclass(frozen=True, slots=True)
class DrawnWork:
    """What drawing one request takes."""

    model: str
    #: px².
    area: int
    #: Rows that each of its calls has, over all images, and how often it is called.
    rows: int
    calls: int
    #: s besides its steps: prompts, input pictures, decoding.
    once_s: float
    #: It shares no call with others.
    alone: bool = False


class CallPaces:
    """What calls cost, by model, size and width. Sizes that were never measured cost as the nearest, by area."""

    def __init__(self, costs: Iterable[CallCost], cards: Mapping[str, ModelCard]) -> None:
        self._cards = cards
        self._costs: defaultdict[str, list[CallCost]] = defaultdict(list)
        for cost in costs:
            card = cards.get(cost.label.model)
            if card is not None and short_digest(card) == cost.label.sha256:
                self._costs[card.id].append(cost)
        self._widths: dict[str, dict[int, list[tuple[int, float]]]] = {
            model: _widths(each) for model, each in self._costs.items()
        }
        self._pieces: dict[tuple[str, str, int], float] = {}
        #: What was reckoned already: jobs are looked at again each second, and most are alike.
        self.works: dict[str, DrawnWork] = {}
        self._alone_s: dict[DrawnWork, float] = {}

    def knows(self, model: str) -> bool:
        """Whether steps of this model were measured."""
        return bool(self._widths.get(model))

    def work(self, spec: GenerationSpec, cost: float) -> DrawnWork:
        """Return what a request takes; `cost` in denoiser rows × steps of the model's native size, as its job says."""
        area, card = spec.width * spec.height, self._cards.get(spec.model)
        if card is None:
            return DrawnWork(spec.model, area, 1, max(1, round(cost)), 0.0)
        calls = denoiser_calls(spec.scheduler, run=steps_run(card.family, steps=spec.steps, strength=spec.strength))
        rows = spec.num_images * (2 if spec.guidance_scale > 1 and card.takes_negative_prompt else 1)
        pictures = encoded_pictures(spec.task) * self._piece(card.id, "encode", area) + self._piece(
            card.id, "decode", area
        )
        once_s = spec.num_images * pictures + self._piece(card.id, "prompts", 0)
        alone = spec.deterministic or card.execution == "whole"
        return DrawnWork(card.id, area, rows, max(1, calls), once_s, alone)

    def usual(self, card: ModelCard) -> DrawnWork:
        """Return what a request takes that asks for nothing but a prompt."""
        area = card.width * card.height
        rows = 2 if card.guidance_scale > 1 and card.takes_negative_prompt else 1
        once_s = self._piece(card.id, "decode", area) + self._piece(card.id, "prompts", 0)
        calls = denoiser_calls(card.scheduler, run=card.steps)
        return DrawnWork(card.id, area, rows, calls, once_s, card.execution == "whole")

    def call_s(self, model: str, area: int, rows: int) -> float:
        """Return the seconds of one denoiser call; of a model that was never measured, its rows × megapixels."""
        by_area = self._widths.get(model)
        if not by_area:
            return rows * area / 1e6
        nearest = min(by_area, key=lambda each: abs(math.log(max(1, each) / max(1, area))))
        return _at(by_area[nearest], rows) * area / max(1, nearest)

    def steps_s(self, company: Sequence[DrawnWork]) -> list[float]:
        """Return the seconds in which each of a company makes one step, the company staying as it is.

        An engine gives each key of calls the time that its works are of all that wait (`worker.engine.rounds`); what
        comes once, as decoding, is spread over the steps, and everybody waits for it.
        """
        keys = [at if each.alone else (each.model, each.area) for at, each in enumerate(company)]
        rows: defaultdict[object, int] = defaultdict(int)
        works: Counter[object] = Counter(keys)
        for key, each in zip(keys, company, strict=True):
            rows[key] += each.rows
        once_s = sum(each.once_s / each.calls for each in company)
        step_s = {
            key: self.call_s(each.model, each.area, rows[key]) * len(company) / works[key]
            for key, each in dict(zip(keys, company, strict=True)).items()
        }
        return [step_s[key] + once_s for key in keys]

    def alone_s(self, work: DrawnWork) -> float:
        """Return the seconds that a device takes for a request which has it for itself."""
        if work not in self._alone_s:
            if len(self._alone_s) > _REMEMBERED:
                self._alone_s.clear()
            self._alone_s[work] = work.calls * self.steps_s([work])[0]
        return self._alone_s[work]

    def _piece(self, model: str, kind: str, area: int) -> float:
        asked = model, kind, area
        if asked not in self._pieces:
            of_kind = [cost for cost in self._costs.get(model, ()) if cost.label.kind == kind]
            self._pieces[asked] = piece_s(of_kind, area) or 0.0
        return self._pieces[asked]


def _widths(costs: Iterable[CallCost]) -> dict[int, list[tuple[int, float]]]:
    """Return by area the (rows, s) of denoiser calls, ascending; of labels that differ in tokens, the mean."""
    found: defaultdict[int, defaultdict[int, list[CallCost]]] = defaultdict(lambda: defaultdict(list))
    for cost in costs:
        if cost.label.kind == "denoise":
            found[cost.label.width_px * cost.label.height_px][cost.rows].append(cost)
    return {area: [(rows, _mean_s(same)) for rows, same in sorted(by_rows.items())] for area, by_rows in found.items()}


def _mean_s(costs: list[CallCost]) -> float:
    return sum(cost.calls * cost.seconds for cost in costs) / sum(cost.calls for cost in costs)


def _at(widths: list[tuple[int, float]], rows: int) -> float:
    """Return the s of a call of so many rows, by a straight line between the widths that were measured.

    Beyond the last one time grows as rows do; below the first half of it does, as a call takes something in any case.
    """
    at = bisect_left(widths, rows, key=lambda each: each[0])
    if at == len(widths):
        last, last_s = widths[-1]
        return last_s * rows / last
    above, above_s = widths[at]
    if at == 0:
        return above_s * (1 + rows / above) / 2
    below, below_s = widths[at - 1]
    return below_s + (above_s - below_s) * (rows - below) / (above - below)
