"""Lets the tests of adapters import `families`, which they share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
