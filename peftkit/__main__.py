"""`python -m peftkit` is `peftkit`."""

import sys

from peftkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
