"""Lets the tests of regularizers import `tiny_runs`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
