"""How the model in the box is made: data, autoencoder, text encoder, denoiser, its extras, and their figures.

No part of the service: nothing here is installed with it or imported by it. `README.md` tells the story in order.
"""
