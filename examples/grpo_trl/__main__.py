"""``python -m examples.grpo_trl``."""

import sys

from .train import main

sys.exit(main())
