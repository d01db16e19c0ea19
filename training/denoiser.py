"""The denoiser and the text encoder, together: the diffusion model proper.

A step, in words: take captions and clean latents; drop a tenth of the captions; mix each latent with noise of a random
timestep (`diffusion.add_noise`); let the U-Net see the mixture, the timestep and the encoded caption; take the squared
distance of what it says from the velocity. The dropped captions teach the same network to denoise without a prompt, and
that is what classifier-free guidance (Ho and Salimans 2022) subtracts when it draws.
"""

import functools
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training import diffusion, drawings, latents, run, tokenizer
from training.drawing import draw
from training.latents import Latents
from training.networks import assemble, new_denoiser
from training.pictures import save_sheet
from training.run import Modules, Recipe, Step

RECIPE = Recipe(steps=9000, batch=64, learning_rate=1e-3, warmup=150, ema_decay=0.999)
#: Part of the captions that are replaced by the empty prompt.
PROMPT_DROP = 0.1
#: Prompts of the sheet that is drawn at each checkpoint, to look at.
WATCHED = (
    "a red apple, 3d render",
    "cat face, flat vector",
    "a rocket, noto style",
    "a panda, 3d render",
    "a pizza, noto style",
    "a tractor, flat vector",
    "an octopus, noto style",
    "a guitar, flat vector",
    "a castle, 3d render, on a light blue background",
    "an owl, 3d render, on a green background",
    "a birthday cake",
    "a game die, noto style",
    "a big yellow star on a blue background",
    "a small white triangle in the top left on a red background",
    "a purple ring on a yellow background",
    "a black cross in the bottom right on a green background",
)


def train(work: Path, recipe: Recipe = RECIPE, start: Path | None = None) -> None:
    """Train U-Net and text encoder into `work`/denoiser.

    They start from a pipeline folder `start`, or from an untrained U-Net and the text encoder in `work`.
    """
    vae = AutoencoderKL.from_pretrained(work / "autoencoder" / "weights").eval()
    tokens = tokenizer.build(work)
    torch.manual_seed(recipe.seed)
    text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder" if start else work / "text_encoder" / "weights")
    unet = UNet2DConditionModel.from_pretrained(start / "unet") if start else new_denoiser()
    data = latents.encode(vae, drawings.load(work))
    modules = {"unet": unet.train(), "text_encoder": text_encoder.train()}
    loss = functools.partial(_loss, unet, text_encoder, tokens, data)
    run.train("denoiser", work / "denoiser", recipe, modules, loss, functools.partial(_save, work, vae, tokens))


def token_ids(tokens: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Return ids (n, 77), padded as the pipeline pads a prompt."""
    encoded = tokens(captions, padding="max_length", max_length=tokenizer.MAX_TOKENS, truncation=True)
    return torch.tensor(encoded["input_ids"])


def _loss(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokens: CLIPTokenizer, data: Latents, step: Step
) -> torch.Tensor:
    z0, captions = data.sample(step.rng, step.batch)
    captions = ["" if step.rng.random() < PROMPT_DROP else caption for caption in captions]
    eps = torch.randn(z0.shape, generator=step.generator)
    t = diffusion.random_timesteps(step.batch, step.generator)
    with torch.autocast("cpu", torch.bfloat16):
        context = text_encoder(token_ids(tokens, captions)).last_hidden_state
        predicted = unet(diffusion.add_noise(z0, eps, t), t, encoder_hidden_states=context).sample
    error = (predicted.float() - diffusion.velocity(z0, eps, t)).pow(2).mean((1, 2, 3))
    return (diffusion.loss_weight(t) * error).mean()


def _save(work: Path, vae: AutoencoderKL, tokens: CLIPTokenizer, averages: Modules) -> None:
    unet, text_encoder = averages["unet"], averages["text_encoder"]
    assert isinstance(unet, UNet2DConditionModel)
    assert isinstance(text_encoder, CLIPTextModel)
    pipeline = assemble(vae, text_encoder, tokens, unet)
    pipeline.save_pretrained(work / "denoiser" / "pipeline")
    save_sheet(draw(pipeline, WATCHED), work / "denoiser" / "watched.png", columns=8)
