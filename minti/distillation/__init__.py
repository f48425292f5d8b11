"""Distillation: score distillation sampling, progressive distillation, consistency models."""
