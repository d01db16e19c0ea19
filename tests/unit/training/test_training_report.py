"""What is asked of the model, and how the answers are told."""

from __future__ import annotations

from collections import Counter

import pytest

from training import measures_prompts, measures_report
from training.captions import BACKGROUNDS
from training.drawings import STYLES
from training.latents import held_out_shapes
from training.measures_report import Figure, hits


def test_subject_prompts_are_200_subjects_in_every_style_and_the_same_each_time() -> None:
    prompts = measures_prompts.subject_prompts()
    assert prompts == measures_prompts.subject_prompts()
    assert len({prompt.subject for prompt in prompts}) == 200
    assert min(Counter(prompt.style for prompt in prompts).values()) > 40
    assert {prompt.style for prompt in prompts} == set(STYLES)
    assert all(prompt.text.startswith(("a ", "an ")) and STYLES[prompt.style] in prompt.text for prompt in prompts)
    assert {prompt.meant_background for prompt in prompts} == {"white"}


def test_background_prompts_name_every_background() -> None:
    prompts = measures_prompts.background_prompts()
    assert len(prompts) == 48
    assert min(Counter(prompt.meant_background for prompt in prompts).values()) >= 4
    assert {prompt.meant_background for prompt in prompts} == set(BACKGROUNDS)
    assert all(f"on a {prompt.background} background" in prompt.text for prompt in prompts)


def test_sheet_asks_for_84_drawings_and_12_shapes_never_trained_on() -> None:
    prompts = measures_prompts.sheet_prompts()
    assert len(set(prompts)) == 96
    assert prompts == measures_prompts.sheet_prompts()
    assert set(prompts[-12:]) <= {shape.caption for shape in held_out_shapes()}
    drawings = prompts[:84]
    assert 15 <= sum("background" in text for text in drawings) <= 45
    assert all(any(words in text for words in STYLES.values()) for text in drawings)


def test_interval_is_wilsons() -> None:
    assert measures_report.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert measures_report.interval(1.0, 200)[1] == 1
    assert measures_report.interval(1.0, 200)[0] == pytest.approx(0.981, abs=1e-3)
    assert measures_report.interval(0.0, 10)[0] == 0


def test_aim_is_met_from_its_own_side() -> None:
    assert Figure("g", "more", 0.85, aim=0.85).met is True
    assert Figure("g", "more", 0.84, aim=0.85).met is False
    assert Figure("g", "less", 1.9, "s", aim=2.0, less_is_better=True).met is True
    assert Figure("g", "less", 2.1, "s", aim=2.0, less_is_better=True).met is False
    assert Figure("g", "none", 0.5).met is None


def test_hits_are_counted() -> None:
    figure = hits("g", "name", (i % 4 == 0 for i in range(200)), aim=0.2)
    assert (figure.value, figure.n, figure.met) == (0.25, 200, True)


def test_table_says_value_spread_aim_and_chance_and_what_was_missed() -> None:
    figures = [
        Figure("shapes", "place", 0.985, n=200, aim=0.98, chance=0.2, counted=True),
        Figure("shapes", "overlap", 0.5, n=100, aim=0.85, chance=1 / 6),
        Figure("speed", "one picture", 0.534, "s", 5, aim=2.0, less_is_better=True),
        Figure("autoencoder", "reconstruction", 28.345, "dB PSNR", 189),
    ]
    lines = measures_report.markdown(figures, "As said.").splitlines()
    assert lines[2:9] == [
        "| **shapes** | | | | | |",
        "| place | 98.5 % | 96–99 % | ≥ 98.0 % | 20.0 % | 200 |",
        "| overlap | 50.0 % |  | ≥ 85.0 %, missed | 16.7 % | 100 |",
        "| **speed** | | | | | |",
        "| one picture | 0.53 s |  | ≤ 2.00 s |  | 5 |",
        "| **autoencoder** | | | | | |",
        "| reconstruction | 28.34 dB PSNR |  |  |  | 189 |",
    ]
    assert lines[-1] == "As said."
    assert {line.count("|") for line in lines[:9]} == {7}
