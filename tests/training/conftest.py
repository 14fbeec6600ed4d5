"""Processes that tests start wait for their threads without spinning, which a busy machine needs."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
