"""Lets the tests of merges import `merge_bases`, which they share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
