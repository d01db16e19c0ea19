"""Which denoiser calls may be joined, and that joined they return what each returns by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from tests.models import tiny_model
from worker.engine.calls import DenoiserCall

#: Of a prediction, whose numbers are about 1.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Doubling(torch.nn.Module):
    """Returns twice its latents, and keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        self.seen.append((args, kwargs))
        given = [*args, kwargs.get("sample"), kwargs.get("hidden_states")]
        return (2 * next(value for value in given if value is not None),)


MODULE = Doubling()


@cache
def unet(name: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_model(name) / "unet").eval()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(
    *args: Any, module: torch.nn.Module = MODULE, alone: bool = False, rows: int = 2, seed: int = 0, **kwargs: Any
) -> DenoiserCall:
    """Return a call as the pipelines of Stable Diffusion make it, but for what is given."""
    given = args or (noise(rows, 4, 8, 8, seed=seed), torch.tensor(5))
    usual = {
        "encoder_hidden_states": noise(rows, 77, 32, seed=seed + 1),
        "timestep_cond": None,
        "cross_attention_kwargs": None,
        "added_cond_kwargs": None,
        "return_dict": False,
    }
    return DenoiserCall(module, given, usual | kwargs, alone=alone)


def latents(rows: int = 2, **changes: Any) -> torch.Tensor:
    return noise(rows, 4, 8, 8, **changes)


def added(rows: int = 2, width: int = 48, **more: Any) -> dict[str, Any]:
    """Return SDXL's conditioning."""
    return {"text_embeds": noise(rows, width), "time_ids": noise(rows, 6), **more}


JOINED = [
    pytest.param(call(seed=7), id="other prompt and noise"),
    pytest.param(call(rows=1), id="without guidance"),
    pytest.param(call(latents(), torch.tensor(901)), id="other timestep"),
    pytest.param(call(latents(), torch.tensor(5.25)), id="timestep of another format"),
    pytest.param(call(latents(), torch.tensor([5, 9])), id="a timestep a row"),
    pytest.param(call(latents(), torch.tensor([5])), id="a vector of one timestep"),
]

APART = [
    pytest.param(call(module=Doubling()), id="module"),
    pytest.param(call(noise(2, 4, 8, 12), torch.tensor(5)), id="size"),
    pytest.param(call(noise(2, 9, 8, 8), torch.tensor(5)), id="channels"),
    pytest.param(call(latents(dtype=torch.float16), torch.tensor(5)), id="number format"),
    pytest.param(call(latents().to("meta"), torch.tensor(5)), id="device"),
    pytest.param(call(latents(), torch.tensor(5, device="meta")), id="device of the timestep"),
    pytest.param(call(latents(), 5), id="a plain timestep"),
    pytest.param(call(encoder_hidden_states=noise(2, 154, 32)), id="length of the prompts"),
    pytest.param(call(encoder_hidden_states=noise(2, 77, 48)), id="width of the prompts"),
    pytest.param(call(encoder_hidden_states=noise(2, 77, 32, dtype=torch.float16)), id="format of the prompts"),
    pytest.param(call(encoder_hidden_states=None), id="without prompts"),
    pytest.param(call(timestep_cond=noise(2, 8)), id="distilled guidance"),
    pytest.param(call(cross_attention_kwargs={"scale": 0.5}), id="strength of an adapter"),
    pytest.param(call(added_cond_kwargs=added()), id="XL's conditioning"),
    pytest.param(call(return_dict=True), id="form of the result"),
    pytest.param(call(class_labels=noise(2, 8)), id="an argument more"),
    pytest.param(call(down_block_additional_residuals=[noise(2, 16, 8, 8)]), id="a ControlNet"),
    pytest.param(call(alone=True), id="alone"),
]


@pytest.mark.parametrize("other", JOINED)
def test_rows_of_one_shape_may_share_a_call_whatever_is_in_them(other: DenoiserCall) -> None:
    assert call().key == other.key
    assert hash(call().key) == hash(other.key)


@pytest.mark.parametrize("other", APART)
def test_what_makes_another_computation_of_it_keeps_calls_apart(other: DenoiserCall) -> None:
    assert call().key != other.key


def residuals(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    return {
        "down_block_additional_residuals": [noise(*shape, seed=seed) for shape in shapes],
        "mid_block_additional_residual": noise(2, 32, 4, 4, seed=seed),
    }


FLUX = {"txt_ids": torch.zeros(7, 3), "img_ids": noise(16, 3)}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        pytest.param({"added_cond_kwargs": added()}, {"added_cond_kwargs": added(seed=3)}, False, id="a name more"),
        pytest.param({"added_cond_kwargs": added()}, {"added_cond_kwargs": added()}, True, id="nested, alike"),
        pytest.param({"added_cond_kwargs": added()}, {"added_cond_kwargs": added(width=32)}, False, id="nested shape"),
        pytest.param(residuals((2, 16, 8, 8)), residuals((2, 16, 8, 8), seed=3), True, id="residuals, alike"),
        pytest.param(residuals((2, 16, 8, 8)), residuals((2, 16, 4, 4)), False, id="shape of a residual"),
        pytest.param(residuals((2, 16, 8, 8)), residuals(*[(2, 16, 8, 8)] * 2), False, id="number of residuals"),
        pytest.param({"adapters": "a"}, {"adapters": "b"}, False, id="a text"),
        pytest.param({"adapters": ["a", "b"]}, {"adapters": ["a", "b"]}, True, id="texts, alike"),
        pytest.param({"flag": True}, {"flag": 1}, False, id="a truth value and a number"),
        pytest.param({"scale": torch.tensor(0.5)}, {"scale": torch.tensor(0.5)}, True, id="a number, alike"),
        pytest.param({"scale": torch.tensor(0.5)}, {"scale": torch.tensor(0.7)}, False, id="a number"),
        pytest.param({"bias": noise(1, 8)}, {"bias": noise(1, 8)}, True, id="one row for all, alike"),
        pytest.param({"bias": noise(1, 8)}, {"bias": noise(1, 8, seed=3)}, False, id="one row for all"),
        pytest.param({"bias": noise(1, 8)}, {"bias": noise(2, 8)}, False, id="one row for all, a row for each"),
        pytest.param(FLUX, FLUX | {"img_ids": FLUX["img_ids"].clone()}, True, id="positions, alike"),
        pytest.param(FLUX, FLUX | {"img_ids": noise(16, 3, seed=3)}, False, id="positions"),
        pytest.param(FLUX, FLUX | {"txt_ids": torch.zeros(9, 3)}, False, id="number of positions"),
        pytest.param(
            {k: v.bfloat16() for k, v in FLUX.items()},
            {k: v.bfloat16() for k, v in FLUX.items()},
            True,
            id="positions in bfloat16",
        ),
    ],
)
def test_nested_arguments_lists_and_positions_count_too(
    one: dict[str, Any], other: dict[str, Any], *, equal: bool
) -> None:
    assert (call(**one).key == call(**other).key) is equal


def test_a_call_that_is_to_be_alone_meets_not_even_itself() -> None:
    assert call(alone=True).key != call(alone=True).key


def test_a_call_with_more_positional_arguments_than_have_a_name_is_made_alone_and_whole() -> None:
    module = Doubling()
    given = (latents(), torch.tensor(5), noise(2, 77, 32))
    works = [DenoiserCall(module, given, {}, alone=False) for _ in range(2)]
    assert works[0].key != works[1].key
    works[0].alone()
    assert module.seen[0][0] == given


def test_a_call_without_latents_is_no_denoisers() -> None:
    with pytest.raises(TypeError, match="latents"):
        DenoiserCall(MODULE, (), {"timestep": torch.tensor([1, 2])}, alone=False)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (call(), 2),
        (call(rows=1), 1),
        (call(rows=5), 5),
        (
            DenoiserCall(
                MODULE, (), {"timestep": torch.ones(3), "txt_ids": torch.ones(7, 3), "x": noise(3, 8)}, alone=False
            ),
            3,
        ),
    ],
)
def test_rows_are_those_of_the_latents(given: DenoiserCall, rows: int) -> None:
    assert given.rows == rows


def test_a_call_by_itself_reaches_the_module_untouched() -> None:
    module = Doubling()
    sample, timestep, kwargs = latents(), torch.tensor(5), {"added_cond_kwargs": added(), "return_dict": False}
    single = DenoiserCall(module, (sample, timestep), kwargs, alone=False)
    results = [single.alone(), *single.together([single])]
    for (args, seen), result in zip(module.seen, results, strict=True):
        assert args[0] is sample
        assert args[1] is timestep
        assert seen["added_cond_kwargs"] is kwargs["added_cond_kwargs"]
        assert torch.equal(result[0], 2 * sample)


def test_joined_arguments_are_the_rows_of_all_in_order_and_what_is_no_row_is_given_once() -> None:
    module = Doubling()
    works = [
        DenoiserCall(
            module,
            (),
            FLUX | {"hidden_states": noise(rows, 8, seed=rows), "timestep": timestep, "scale": torch.tensor(0.5)},
            alone=False,
        )
        for rows, timestep in ((2, torch.tensor(5)), (1, torch.tensor([7])), (3, torch.tensor([1, 2, 3])))
    ]
    assert len({work.key for work in works}) == 1
    results = works[0].together(works)
    ((args, seen),) = module.seen
    assert args == ()
    assert torch.equal(seen["hidden_states"], torch.cat([noise(rows, 8, seed=rows) for rows in (2, 1, 3)]))
    assert seen["timestep"].tolist() == [5, 5, 7, 1, 2, 3]
    assert seen["timestep"].dtype == torch.int64
    assert seen["txt_ids"] is FLUX["txt_ids"]
    assert seen["scale"].shape == ()
    assert [torch.equal(r[0], 2 * noise(n, 8, seed=n)) for r, n in zip(results, (2, 1, 3), strict=True)] == [True] * 3


def test_timesteps_of_different_formats_are_joined_in_the_format_they_are_embedded_in() -> None:
    module = Doubling()
    works = [call(latents(), t, module=module) for t in (torch.tensor(981), torch.tensor(5.25, dtype=torch.float64))]
    works[0].together(works)
    assert module.seen[0][1]["timestep"].tolist() == [981.0, 981.0, 5.25, 5.25]
    assert module.seen[0][1]["timestep"].dtype == torch.float32


def assert_joined_equals_separate(works: Sequence[DenoiserCall]) -> None:
    assert len({work.key for work in works}) == 1
    separate = [work.alone()[0] for work in works]
    joined = [result[0] for result in works[0].together(works)]
    assert [len(prediction) for prediction in joined] == [work.rows for work in works]
    for ours, theirs in zip(joined, separate, strict=True):
        assert (ours - theirs).abs().max() <= ROUNDING
        assert theirs.std() > 0.05
    assert not torch.allclose(separate[0][0], separate[1][0], atol=100 * ROUNDING)


TIMESTEPS = (torch.tensor(5), torch.tensor(801.5), torch.tensor([300, 310, 320]), torch.tensor(300))


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_calls_of_a_u_net_joined_return_what_each_returns_by_itself(name: str) -> None:
    works = [
        call(latents(rows, seed=n), TIMESTEPS[n], module=unet(name), rows=rows, seed=n)
        for n, rows in enumerate((2, 1, 3, 2))
    ]
    assert_joined_equals_separate(works)


def test_calls_of_sdxls_u_net_joined_return_what_each_returns_by_itself() -> None:
    def conditioning(rows: int, seed: int) -> dict[str, torch.Tensor]:
        return {"text_embeds": noise(rows, 48, seed=seed), "time_ids": 64 * noise(rows, 6, seed=seed).abs()}

    works = [
        call(
            latents(rows, seed=n),
            TIMESTEPS[n],
            module=unet("sdxl"),
            encoder_hidden_states=noise(rows, 77, 80, seed=n),
            added_cond_kwargs=conditioning(rows, n),
        )
        for n, rows in enumerate((2, 1, 3, 2))
    ]
    assert_joined_equals_separate(works)


@cache
def controlnet() -> ControlNetModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ControlNetModel.from_unet(unet("sd15"))
        for parameter in model.parameters():
            # Its last convolutions begin at zero, and would add nothing to tell the rows apart by.
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_calls_of_a_controlnet_and_of_the_u_net_behind_it_are_joined_residual_by_residual() -> None:
    def controls(rows: int, seed: int) -> DenoiserCall:
        return DenoiserCall(
            controlnet(),
            (latents(rows, seed=seed), torch.tensor(5)),
            {
                "encoder_hidden_states": noise(rows, 77, 32, seed=seed),
                "controlnet_cond": noise(rows, 3, 64, 64, seed=seed),
                "conditioning_scale": 0.8,
                "guess_mode": False,
                "return_dict": False,
            },
            alone=False,
        )

    works = [controls(rows, seed) for seed, rows in enumerate((2, 1, 3))]
    separate = [work.alone() for work in works]
    joined = works[0].together(works)
    for (down, mid), (own_down, own_mid) in zip(joined, separate, strict=True):
        assert len(down) == len(own_down) > 2
        for ours, theirs in zip([*down, mid], [*own_down, own_mid], strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= ROUNDING * theirs.abs().max()
            assert theirs.abs().max() > 0
    assert_joined_equals_separate(
        [
            call(
                latents(rows, seed=seed),
                torch.tensor(5),
                module=unet("sd15"),
                encoder_hidden_states=noise(rows, 77, 32, seed=seed),
                down_block_additional_residuals=list(own_down),
                mid_block_additional_residual=own_mid,
            )
            for (own_down, own_mid), (seed, rows) in zip(separate, enumerate((2, 1, 3)), strict=True)
        ]
    )


def test_model_outputs_come_apart_into_model_outputs() -> None:
    works = [call(module=unet("sd15"), rows=rows, seed=rows, return_dict=True) for rows in (2, 1)]
    results = works[0].together(works)
    for result, work in zip(results, works, strict=True):
        assert isinstance(result, UNet2DConditionOutput)
        assert (result.sample - work.alone().sample).abs().max() <= ROUNDING


def test_one_callers_changes_to_its_result_are_not_seen_by_another() -> None:
    works = [call(module=unet("sd15"), rows=2, seed=seed) for seed in (1, 2)]
    first, second = (result[0] for result in works[0].together(works))
    expected = second.clone()
    first.mul_(0)
    assert torch.equal(second, expected)


def test_what_is_no_row_is_read_once_and_again_when_it_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    to_cpu = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        read.append(tensor)
        return to_cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    ids = torch.arange(12.0).reshape(4, 3)
    first, second = call(img_ids=ids), call(img_ids=ids)
    assert first.key == second.key
    assert len(read) == 1
    ids[2, 1] = -1
    assert call(img_ids=ids).key != first.key
    assert len(read) == 2
