"""The two networks of Stable Diffusion (lecture notes `002`, 5.3 and chapters 7 and 17).

Read `unet`, the denoiser, then `vae`, the autoencoder, and `layers`, the pieces both are built from. `controlnet` is a
copy of half a UNet that stands beside it. `kernels` computes what the layers ask for in the way that is fastest on the
machine at hand; nothing else needs to know how.
"""
