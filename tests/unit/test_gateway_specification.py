"""From a request to what is run: defaults, limits, and every error at once."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.catalog import ModelCard, StepRange
from service.contract.errors import FieldError, InvalidRequest, Unavailable
from service.contract.generation import SEED_MAX
from service.contract.schedulers import OWN_SCHEDULER, SCHEDULERS
from service.contract.steps import steps_run
from service.generations.pictures import PictureLimits, PictureRefused, read_picture
from service.generations.request import GenerationRequest
from service.generations.specification import Draft, draft
from service.net.urls import parse_url
from tests.gateway import EMOJI, SHAPES, picture

LIMITS = PictureLimits(max_bytes=100_000, max_side_px=512, max_pixels=200 * 200)
ASSET = {"base64": "AAAA"}
HOOK = "https://example.com/hook"


def check_url(url: str) -> None:
    parse_url(url, http=False, ports=(443,))


def drafted(**fields: Any) -> Draft:
    return draft(
        {"prompt": "x", **fields}, [SHAPES, EMOJI], draw_seed=lambda n: n - 1, retain_max_s=1000, check_url=check_url
    )


def errors(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        drafted(**fields)
    return {each.pointer: each.message for each in caught.value.errors}


def test_what_is_not_said_comes_from_the_model_card() -> None:
    spec = drafted().spec
    assert (spec.model, spec.width, spec.height, spec.steps) == ("shapes", 64, 64, 20)
    assert (spec.guidance_scale, spec.scheduler, spec.strength) == (3.0, "ddim", None)
    assert (spec.output.format, spec.output.quality, spec.output.embed_parameters) == ("png", None, False)


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys([name for name in GenerationRequest.model_fields if name != "prompt"])
    assert drafted(**nothing) == drafted()


def test_zero_guidance_is_not_taken_for_absent() -> None:
    assert drafted(guidance_scale=0).spec.guidance_scale == 0.0


def test_a_drawn_seed_leaves_room_for_every_image() -> None:
    assert drafted(num_images=4).spec.seed == SEED_MAX - 3
    assert drafted(seed=SEED_MAX - 3, num_images=4).spec.seed == SEED_MAX - 3
    assert set(errors(seed=SEED_MAX - 2, num_images=4)) == {"/seed"}


@given(st.integers(1, 1000), st.floats(0, 1, exclude_min=True))
def test_steps_run_are_counted_as_diffusers_does(steps: int, strength: float) -> None:
    # diffusers 0.42: StableDiffusionImg2ImgPipeline.get_timesteps
    assert steps_run("sd1", steps=steps, strength=strength) == min(int(steps * strength), steps)
    # StableDiffusion3Img2ImgPipeline.get_timesteps, FluxImg2ImgPipeline.get_timesteps
    left_out = int(max(steps - min(steps * strength, steps), 0))
    assert steps_run("sd3", steps=steps, strength=strength) == steps_run("flux", steps=steps, strength=strength)
    assert steps_run("flux", steps=steps, strength=strength) == steps - left_out
    assert steps_run("lcm", steps=steps, strength=strength) == steps
    assert steps_run("sd1", steps=steps, strength=None) == steps


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 49, 50])
def test_the_least_strength_that_a_message_names_is_taken(steps: int) -> None:
    told = errors(task="image-to-image", image=ASSET, steps=steps, strength=1e-6)["/strength"]
    least = float(told.split()[4])
    assert steps_run("sd1", steps=steps, strength=least) >= 1


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({"width": 65}, {"/width"}),
        ({"width": 24}, {"/width"}),
        ({"height": 136}, {"/height"}),
        ({"width": 128, "height": 128}, {"/width"}),
        ({"steps": 51}, {"/steps"}),
        ({"num_images": 5}, {"/num_images"}),
        ({"retain_s": 1001}, {"/retain_s"}),
        ({"strength": 0.5}, {"/strength"}),
        ({"image": ASSET}, {"/image"}),
        ({"task": "image-to-image"}, {"/image"}),
        ({"task": "image-to-image", "image": ASSET, "mask": ASSET}, {"/mask"}),
        ({"task": "inpaint", "image": ASSET}, {"/mask"}),
        ({"model": "emoji", "task": "inpaint", "image": ASSET, "mask": ASSET}, {"/task"}),
        ({"model": "emoji", "scheduler": "unipc"}, {"/scheduler"}),
        ({"scheduler": "ddim", "sigmas": "karras"}, {"/sigmas"}),
        ({"output": {"quality": 5}}, {"/output/quality"}),
        ({"task": "nope", "image": ASSET, "strength": 0.5}, {"/task"}),
        ({"scheduler": 5, "sigmas": "karras"}, {"/scheduler"}),
        ({"width": "wide", "steps": 51, "labels": {"a": 1}}, {"/width", "/steps", "/labels/a"}),
        ({"image": {"path": "x"}}, {"/image/path"}),
    ],
)
def test_each_limit_is_told_at_its_field_and_nothing_else_is(fields: dict[str, Any], pointers: set[str]) -> None:
    assert set(errors(**fields)) == pointers


#: What a card of Stable Diffusion 1.x says.
PARTICULAR = SHAPES.model_copy(
    update={
        "step_ranges": {
            "lcm": StepRange(min_steps=1, max_steps=50),
            "pndm": StepRange(min_steps=4, max_steps=1000),
        },
        "limits": SHAPES.limits.model_copy(update={"max_steps": 150}),
        "rescaled_tasks": ("text-to-image",),
    }
)


def told_of(card: ModelCard, **fields: Any) -> dict[str, str]:
    try:
        draft({"prompt": "x", **fields}, [card], draw_seed=lambda _: 0, retain_max_s=1000, check_url=check_url)
    except InvalidRequest as err:
        return {each.pointer: each.message for each in err.errors}
    return {}


@pytest.mark.parametrize(
    ("scheduler", "steps", "told"),
    [
        ("lcm", 50, None),
        ("lcm", 51, "must be 1 to 50 denoising steps with the scheduler lcm, for the model shapes"),
        ("pndm", 3, "must be 4 to 1000 denoising steps with the scheduler pndm, for the model shapes"),
        ("plms", 3, "must be 4 to 1000 denoising steps with the scheduler pndm, for the model shapes"),
        ("pndm", 4, None),
        ("ddim", 3, None),
        ("ddim", 150, None),
        ("lcm", 151, "must be at most 150 denoising steps for the model shapes"),
    ],
)
def test_steps_that_a_sampler_cannot_do_are_refused_with_those_it_can(
    scheduler: str, steps: int, told: str | None
) -> None:
    assert told_of(PARTICULAR, scheduler=scheduler, steps=steps) == ({} if told is None else {"/steps": told})


def test_the_steps_of_a_card_are_refused_where_the_asked_sampler_cannot_do_them() -> None:
    card = PARTICULAR.model_copy(update={"steps": 60})
    assert set(told_of(card, scheduler="lcm")) == {"/steps"}
    assert told_of(card, scheduler="ddim") == {}


@pytest.mark.parametrize(
    ("strength", "steps", "told"),
    [
        (0.5, 25, {}),
        (0.5, 26, {"/steps": "must be 1 to 25 denoising steps with the scheduler lcm at strength 0.5"}),
        (1.0, 50, {}),
        (0.019, 4, {"/strength": "must be at least 0.02 with the scheduler lcm"}),
        (0.02, 1, {}),
    ],
)
def test_strength_leaves_a_latent_consistency_model_a_part_of_its_steps(
    strength: float, steps: int, told: dict[str, str]
) -> None:
    card = PARTICULAR.model_copy(update={"family": "lcm", "scheduler": "lcm"})
    found = told_of(card, task="image-to-image", image=ASSET, strength=strength, steps=steps)
    assert set(found) == set(told)
    assert all(found[where].startswith(message) for where, message in told.items())


def test_strength_takes_nothing_of_what_a_sampler_can_do_with_other_models() -> None:
    assert told_of(PARTICULAR, task="image-to-image", image=ASSET, scheduler="lcm", strength=0.5, steps=50) == {}


def test_guidance_rescale_is_refused_in_tasks_that_have_no_use_for_it() -> None:
    assert told_of(PARTICULAR, guidance_rescale=0.5) == {}
    from_picture = {"task": "image-to-image", "image": ASSET}
    assert set(told_of(PARTICULAR, **from_picture, guidance_rescale=0.5)) == {"/guidance_rescale"}
    assert told_of(PARTICULAR, **from_picture, guidance_rescale=0) == {}
    assert told_of(SHAPES, **from_picture, guidance_rescale=0.5) == {}


def test_a_missing_prompt_does_not_hide_other_errors() -> None:
    with pytest.raises(InvalidRequest) as caught:
        draft({"steps": 51}, [SHAPES], draw_seed=lambda _: 0, retain_max_s=1000, check_url=check_url)
    assert {each.pointer for each in caught.value.errors} == {"/prompt", "/steps"}


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("DDIM", "ddim"), ("DPM++ 2M SDE", "dpmpp_2m_sde"), ("Euler a", "euler_a"), ("eulr", "euler"), ("pms", "plms")],
)
def test_a_scheduler_by_another_name_is_answered_with_ours(asked: str, meant: str) -> None:
    assert meant in errors(scheduler=asked)["/scheduler"]


def test_an_alias_is_taken_for_the_scheduler_itself() -> None:
    assert drafted(scheduler="plms").spec.scheduler == "pndm"


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_scheduler_is_taken_with_every_spacing_that_it_has(name: str) -> None:
    for sigmas in SCHEDULERS[name].spacings:
        assert drafted(scheduler=name, sigmas=sigmas).spec.sigmas == sigmas


def test_cost_counts_rows_steps_and_area() -> None:
    assert drafted(guidance_scale=1).cost == 20
    assert drafted(guidance_scale=2, num_images=3, width=128).cost == 3 * 2 * 20 * 2
    assert drafted(task="image-to-image", image=ASSET, strength=0.5, guidance_scale=1).cost == 10


def distilled(**fields: Any) -> Draft:
    """Draft for a model that reads its guidance as a number, as FLUX.1 dev does."""
    card = SHAPES.model_copy(update={"family": "flux", "unused_fields": ("negative_prompt",)})
    return draft({"prompt": "x", **fields}, [card], draw_seed=lambda n: n - 1, retain_max_s=1000, check_url=check_url)


def test_a_distilled_model_takes_one_row_whatever_its_guidance() -> None:
    assert distilled(guidance_scale=5).cost == drafted(guidance_scale=5).cost / 2 == 20
    with pytest.raises(InvalidRequest) as refused:
        distilled(negative_prompt="blurred")
    assert [each.pointer for each in refused.value.errors] == ["/negative_prompt"]


def test_a_small_strength_of_flux_still_runs_a_step() -> None:
    spec = distilled(task="image-to-image", image=ASSET, strength=0.01, steps=4)
    assert (spec.spec.strength, spec.cost) == (0.01, 1)


def test_a_sampler_that_begins_from_noise_only_is_refused_for_a_picture() -> None:
    assert drafted(scheduler="flow_unipc").spec.scheduler == "flow_unipc"
    told = errors(task="image-to-image", image=ASSET, scheduler="flow_unipc")
    assert told == {"/scheduler": "does text-to-image only; take another for image-to-image"}


def test_without_models_there_is_nothing_to_check_against() -> None:
    with pytest.raises(Unavailable):
        draft({"prompt": "x"}, [], draw_seed=lambda _: 0, retain_max_s=1000, check_url=check_url)


ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    *(st.just({}), st.just([])),
)


@given(st.dictionaries(st.sampled_from(list(GenerationRequest.model_fields)), ANYTHING, max_size=8))
def test_any_body_is_a_draft_or_an_invalid_request(body: dict[str, Any]) -> None:
    told: list[FieldError] = []
    try:
        draft(body, [SHAPES], draw_seed=lambda _: 0, retain_max_s=1000, check_url=check_url)
    except InvalidRequest as err:
        told = err.errors
        assert told
    assert len(told) <= 32
    assert all(each.pointer.startswith("/") and len(each.message) < 300 for each in told)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_picture_is_read_by_its_header() -> None:
    data = picture(40, 30, "jpeg")
    found = read_picture(encoded(data), LIMITS)
    assert (found.format, found.width_px, found.height_px, found.data) == ("jpeg", 40, 30, data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 200_000, "at most 100000 bytes"),
        ("data:image/png;base64,AAAA", "without `data:"),
        ("AAA", "RFC 4648"),
        ("AA\nAA", "RFC 4648"),
        ("_-_-", "RFC 4648"),
        ("é", "RFC 4648"),
        (encoded(b"\0" * 100_001), "at most 100000 bytes"),
        (encoded(picture(513, 100)), "sides of at most 512 px"),
        (encoded(picture(250, 250)), "at most 40000 px²"),
        (encoded(picture(340, 20)), "16 times"),
    ],
)
def test_a_text_that_is_no_picture_within_the_limits_is_refused(text: str, told: str) -> None:
    with pytest.raises(PictureRefused, match=told):
        read_picture(text, LIMITS)


WHOLE = SHAPES.model_copy(
    update={
        "id": "whole",
        "family": "other",
        "execution": "whole",
        "scheduler": OWN_SCHEDULER,
        "schedulers": (OWN_SCHEDULER,),
        "unused_fields": ("negative_prompt", "guidance_scale", "guidance_rescale", "eta", "sigmas"),
    }
)


def of_whole(**fields: Any) -> Draft:
    body = {"prompt": "x", "model": "whole", **fields}
    return draft(body, [SHAPES, WHOLE], draw_seed=lambda n: n - 1, retain_max_s=1000, check_url=check_url)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("negative_prompt", "blurry"),
        ("guidance_scale", 5.0),
        ("guidance_rescale", 0.5),
        ("eta", 0.5),
        ("sigmas", "karras"),
    ],
)
def test_what_a_model_has_no_use_for_is_refused_by_field_and_only_there(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        of_whole(**{field: value})
    assert refused.value.errors == [FieldError(f"/{field}", "does nothing with the model whole; leave it out")]
    drafted(**{field: value}, scheduler="euler")


def test_what_says_no_more_than_the_default_is_taken_by_every_model() -> None:
    spec = of_whole(negative_prompt="", guidance_scale=3.0, guidance_rescale=0, eta=0, scheduler=OWN_SCHEDULER).spec
    assert spec == of_whole().spec
    assert spec.scheduler == OWN_SCHEDULER


def test_a_sampler_that_is_a_models_own_is_offered_by_that_model_alone() -> None:
    assert "is not a scheduler" in errors(scheduler=OWN_SCHEDULER)["/scheduler"]
    with pytest.raises(InvalidRequest) as refused:
        of_whole(scheduler="euler")
    assert refused.value.errors == [FieldError("/scheduler", f"is not offered by the model whole: {OWN_SCHEDULER}")]


@pytest.mark.parametrize(
    ("webhook", "where", "allowed"),
    [
        ({"url": HOOK, "events": ["started"] * 4}, "/webhook/events", "a list of 0 to 3 of started, progress"),
        ({"url": HOOK, "events": ["ended"]}, "/webhook/events/0", "a list of 0 to 3 of started, progress"),
        ({"url": "https://example.com/" + "x" * 2048}, "/webhook/url", "text of 1 to 2048 characters"),
        ({"url": "http://example.com/"}, "/webhook/url", "https"),
        ({"url": "https://user:hunter2@example.com/"}, "/webhook/url", ""),
        ({"url": "https://example.com:99/"}, "/webhook/url", ""),
        ({"url": HOOK, "secret": "x"}, "/webhook/secret", "is not a field"),
        ("https://example.com/", "/webhook", "an object with the fields url, events"),
    ],
)  # fmt: skip
def test_webhooks_that_cannot_be_told_are_refused_at_their_field(webhook: Any, where: str, allowed: str) -> None:
    told = errors(webhook=webhook)
    assert list(told) == [where]
    assert allowed in told[where]
    assert "hunter2" not in told[where]
