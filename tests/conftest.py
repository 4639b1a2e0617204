"""Shared set-up: where CI is set, hypothesis draws the same examples in every run, so that a red build is about the change."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
