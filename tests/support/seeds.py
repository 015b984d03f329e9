"""The seed of a test run: of the order of its tests, and of what they leave to chance.

It is printed before the first test. $IMAGEN_SEED runs the same order and the same choices again.
"""

from __future__ import annotations

import os
import time

VARIABLE = "IMAGEN_SEED"
# in the environment, so that the workers of xdist read it too
SEED = int(os.environ.setdefault(VARIABLE, str(int(time.time()))))
