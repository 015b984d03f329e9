"""Run every measurement once and print the tables: ratios of one run on one machine."""

from __future__ import annotations

import pipes
import tempfile

import jobs
import lateness
import memory
import sheets
import startup
import uploads

with tempfile.TemporaryDirectory() as state:
    for part in (startup, pipes, memory, lateness, sheets, uploads, jobs):
        part.main(state)
