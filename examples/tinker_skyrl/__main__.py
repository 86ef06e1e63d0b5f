"""``python -m examples.tinker_skyrl``."""

import sys

from .train import main

if __name__ == "__main__":
    sys.exit(main())
