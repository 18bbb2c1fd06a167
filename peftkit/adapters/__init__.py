"""The few trainable parameters: put on, saved, checked and loaded in peft's layout."""

import logging

# peft imports bitsandbytes, which complains on import about a kernel that it does not need.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from peftkit.adapters import bottleneck as bottleneck  # noqa: E402 - registers itself with peft
