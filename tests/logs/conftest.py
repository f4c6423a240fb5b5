"""The reading that the others are compared with."""

import pytest
from hand_logs import small_world
from whole_reading import everything


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """What is read of the small world as the tests write it."""
    found = everything(small_world(tmp_path_factory.mktemp("plain")))
    assert [r["item_id"] for r in found["candidates"] if r["source"] == "P1"] == [3]
    return found
