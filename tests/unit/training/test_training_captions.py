"""Captions of drawings and of shapes say what is drawn, and no two say the same."""

from __future__ import annotations

import random
import re

import pytest
from transformers import CLIPTokenizer

from tests.models import BOXED_MODEL
from training.captions import BACKGROUNDS, PLAIN, caption, random_caption
from training.drawings import STYLES
from training.latents import every_shape
from training.subjects import SUBJECTS


def test_there_are_261_subjects_and_each_is_named_once() -> None:
    assert len(SUBJECTS) == 261
    assert len(set(SUBJECTS)) == 261
    assert [name for name in SUBJECTS if name != name.strip() or not name] == []


def test_no_subject_has_words_that_the_grammar_puts_after_it() -> None:
    assert [name for name in SUBJECTS if "," in name or "background" in name] == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("red apple",), "a red apple"),
        (("owl", "3d"), "an owl, 3d render"),
        (("owl", None, "light blue"), "an owl, on a light blue background"),
        (("cat face", "flat", "green"), "a cat face, flat vector, on a green background"),
    ],
)
def test_caption_names_subject_style_and_background_in_this_order(asked: tuple[str, ...], expected: str) -> None:
    assert caption(*asked) == expected


def test_caption_can_leave_the_article_out() -> None:
    assert caption("owl", "noto", article=False) == "owl, noto style"


def test_every_caption_of_drawings_is_one_of_a_kind() -> None:
    captions = [caption(s, style, back) for s in SUBJECTS for style in (None, *STYLES) for back in (None, *BACKGROUNDS)]
    assert len(set(captions)) == len(captions)


def test_random_caption_tells_the_truth_in_every_spelling() -> None:
    rng = random.Random(0)
    spellings = set()
    for _ in range(400):
        text, background = random_caption(rng, "owl", "noto")
        named = re.search(r", on a (.+) background$", text)
        assert background == (named[1] if named else PLAIN)
        assert background in BACKGROUNDS
        assert not any(words in text for style, words in STYLES.items() if style != "noto")
        spellings.add((named is None, STYLES["noto"] in text, text.startswith("an ")))
    assert len(spellings) == 8


def test_captions_of_shapes_are_one_of_a_kind() -> None:
    captions = [shape.caption for shape in every_shape()]
    assert len(captions) == 6 * 8 * 7 * 5 * 3
    assert len(set(captions)) == len(captions)
    assert [text for text in captions if "  " in text] == []


def test_tokenizer_in_the_box_spells_every_caption_in_few_pieces() -> None:
    tokens = CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer")
    captions = [caption(subject, style, "light blue") for subject in SUBJECTS for style in STYLES]
    pieces = [len(ids) for ids in tokens(captions)["input_ids"]]
    words = [2 + len(re.findall(r"[a-z]+|[^a-z ]", text.lower())) for text in captions]
    # CLIP itself has no single piece for a word or two of the longest names.
    assert [text for text, n, least in zip(captions, pieces, words, strict=True) if n > least + 3] == []
