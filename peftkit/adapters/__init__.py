"""The few trainable parameters: put on, saved, checked and loaded in peft's layout."""

from peftkit.adapters import bottleneck as bottleneck  # registers itself with peft
