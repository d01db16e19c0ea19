"""Silence for the libraries: stderr is for logs. Import and call it before any pipeline is imported."""

from __future__ import annotations

import warnings

import diffusers
import huggingface_hub
import transformers


def quiet_libraries() -> None:
    """Switch off progress bars and chatter of diffusers, transformers and the hub; each has switches of its own."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    # The Brownian sampler's library tells of every noise level that was rounded.
    warnings.filterwarnings("ignore", category=UserWarning, module="torchsde")
    huggingface_hub.utils.disable_progress_bars()
