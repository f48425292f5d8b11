"""Learned words outside training.

Read `files` for words on disk, of diffusers and AUTOMATIC1111; `known` for the words that a model came with, and
`beginning` for what a new word begins as.
"""
