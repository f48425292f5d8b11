"""Distillation: score distillation sampling."""
