"""Tools that `make test-all` installs, and that are missing where pip cannot have them."""

import os

import pytest


def missing(what):
    """Skips the test; where every tool has to be there, as in CI, it fails."""
    (pytest.fail if os.environ.get("CROPS_REQUIRE_TOOLS") else pytest.skip)(f"no {what}: make test-all installs it")
