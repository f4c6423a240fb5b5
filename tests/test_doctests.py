"""The examples in docstrings, and what the pages import of the package."""

import doctest
import importlib
import re

import pytest
from places import ROOT

FILES = [p for p in sorted((ROOT / "crops_jax").rglob("*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_examples_of_a_module_hold(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_what_the_pages_import_is_there():
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "extending.md"]  # it adds a class
    texts = "\n".join(page.read_text() for page in [ROOT / "README.md", *pages])
    lines = re.findall(r"\bfrom (crops_jax[\w.]*) import ([\w, ]+)", texts)
    assert len(lines) > 5
    for module, names in lines:
        assert [name for name in names.split(", ") if not hasattr(importlib.import_module(module), name)] == [], module
