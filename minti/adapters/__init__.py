"""Adapters of a frozen model: LoRA, ControlNet, IP-Adapter, a tiny decoder."""
