"""The few trainable parameters: put on, saved, checked and loaded in peft's layout."""

from peftkit.adapters.registration import register_with_peft

register_with_peft()
