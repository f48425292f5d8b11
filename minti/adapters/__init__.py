"""Adapters of a frozen model: LoRA, ControlNet, IP-Adapter."""
