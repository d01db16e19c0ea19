"""The networks have the sizes that are promised, and their data says what it is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from tests.models import BOXED_MODEL
from training import networks
from training.captions import BACKGROUNDS, PLAIN
from training.drawings import STYLES
from training.latents import SHAPE_SHARE, Latents, trained_shapes
from training.subjects import SUBJECTS


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


def test_networks_have_the_sizes_that_their_docstrings_say() -> None:
    tokens = CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer")
    assert millions(networks.new_autoencoder()) == 0.65
    assert millions(networks.new_denoiser()) == 6.72
    assert millions(networks.new_text_encoder(tokens)) == pytest.approx(0.46, abs=0.02)


def test_autoencoder_starts_narrow_whatever_it_sees() -> None:
    vae = networks.new_autoencoder()
    posterior = vae.encode(torch.randn(2, 3, 64, 64)).latent_dist
    assert posterior.mean.shape == (2, networks.LATENT_CHANNELS, 16, 16)
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.0302), atol=1e-4, rtol=0)
    assert posterior.mean.std() > 0.01


def test_denoiser_takes_latents_and_context_of_the_other_two() -> None:
    tokens = CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer")
    ids = torch.tensor(tokens(["a red apple"], padding="max_length", max_length=77)["input_ids"])
    with torch.no_grad():
        context = networks.new_text_encoder(tokens)(ids).last_hidden_state
        said = networks.new_denoiser()(torch.randn(1, 4, 16, 16), torch.tensor([500]), context).sample
    assert context.shape == (1, 77, networks.CONTEXT_WIDTH)
    assert said.shape == (1, 4, 16, 16)


@pytest.fixture
def numbered() -> Latents:
    """Latents that are their own number: drawings from 0 on, shapes from -1 down."""
    shape = len(SUBJECTS), len(STYLES), len(BACKGROUNDS), 1, 1, 1
    shapes = trained_shapes()
    drawn = torch.arange(len(SUBJECTS) * len(STYLES) * len(BACKGROUNDS)).view(shape).float()
    return Latents(drawn, -1.0 - torch.arange(len(shapes)).view(-1, 1, 1, 1), {s: i for i, s in enumerate(shapes)})


def test_samples_come_with_captions_of_what_they_are(numbered: Latents) -> None:
    latents, captions = numbered.sample(random.Random(0), 400)
    shapes = trained_shapes()
    of_shapes = 0
    for number, caption in zip(latents.flatten().int().tolist(), captions, strict=True):
        if number < 0:
            of_shapes += 1
            assert caption == shapes[-1 - number].caption
            continue
        subject, rest = divmod(number, len(STYLES) * len(BACKGROUNDS))
        style, background = divmod(rest, len(BACKGROUNDS))
        name, back = SUBJECTS[subject], list(BACKGROUNDS)[background]
        subject_words, *others = caption.split(", ")
        assert subject_words in {name, f"a {name}", f"an {name}"}
        named = f"on a {back} background"
        assert named in others or back == PLAIN
        assert set(others) <= {list(STYLES.values())[style], named}
    assert of_shapes / 400 == pytest.approx(SHAPE_SHARE, abs=0.08)


def test_same_seed_samples_the_same(numbered: Latents) -> None:
    one, other = (numbered.sample(random.Random(3), 50) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
