"""``python -m distilwhisper``: the command line."""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main())
