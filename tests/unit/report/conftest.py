"""Lets the tests of the report import `run_folders`, which those in a browser share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
