"""The three networks, all stock classes, in the sizes that a CPU can train."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.diffusion import BETA_END, BETA_START, TIMESTEPS
from training.drawings import PX

#: Edge of a picture per edge of its latents.
DOWNSAMPLING = 4
LATENT_CHANNELS = 4
#: Width of a token's hidden state: the cross-attention's context.
CONTEXT_WIDTH = 128


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder, 0.65 M parameters: (n, 3, 64, 64) to latents (n, 4, 16, 16)."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PX,
        mid_block_add_attention=False,  # 256 positions: the convolutions already see all of the picture
    )
    start_narrow(vae)
    return vae


def start_narrow(vae: AutoencoderKL) -> None:
    """Let the posterior start with a standard deviation of 0.03 for every latent, whatever the encoder says.

    A random head gives about 1, which drowns the mean before anything is learnt.
    """
    head = vae.quant_conv
    with torch.no_grad():
        head.weight[LATENT_CHANNELS:].zero_()
        head.bias[LATENT_CHANNELS:].fill_(-7.0)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder, 0.46 M parameters: token ids (n, 77) to hidden states (n, 77, 128)."""
    end = tokenizer.eos_token_id
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
            hidden_size=CONTEXT_WIDTH,
            intermediate_size=2 * CONTEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=CONTEXT_WIDTH,
        )
    )
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.05)  # CLIP's 0.02 learns too slowly at this width
    return encoder


def new_denoiser() -> UNet2DConditionModel:
    """Return an untrained U-Net, 6.72 M parameters: latents (n, 4, 16, 16), timesteps (n,), context (n, 77, 128).

    No attention at 16 × 16: it would cost a third of the speed, and a prompt's words are placed well enough at 8 × 8.
    """
    return UNet2DConditionModel(
        sample_size=PX // DOWNSAMPLING,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Return the sampler that the model is published with: DDIM, its last timestep among the sampled ones."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the whole as a pipeline, without a progress bar."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Return a pipeline from a folder, in float32, without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
