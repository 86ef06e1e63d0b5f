"""``python -m examples.calc_x``."""

import sys

from .run import main

sys.exit(main())
