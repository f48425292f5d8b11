"""Prompts as people write them: weights, more than 77 tokens, the text encoder's earlier layers."""
