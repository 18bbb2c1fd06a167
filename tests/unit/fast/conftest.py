"""Lets the tests of the fast paths import `tiny_models`, which they share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
