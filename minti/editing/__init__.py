"""Editing images: image to image, inpainting, DDIM inversion, prompt-to-prompt, attention maps."""
