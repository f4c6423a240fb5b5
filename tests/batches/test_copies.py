"""A text uploaded twice is no negative of itself, and a query in another spelling none of its own."""

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.batches.collate import encode_groups, padded_batch
from crops_jax.labels import Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import HInfoNCEConfig, InfoNCEBinaryConfig, SoftmaxCEConfig
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.text.hashed_ids import IdConfig, IdHasher

TITLES = ["iPhone Case", "iphone  case", "a drill", "a lamp"]
CASES = {
    "the same text under two ids": ([("phone", 0), ("mobile", 1)], 0.0),
    "one query in two spellings": ([("Phone  case", 2), ("phone case", 3)], 0.0),
    "two texts of two queries": ([("phone", 0), ("drill", 2)], np.log(2)),
}
LOSSES = [HInfoNCEConfig(), HInfoNCEConfig(form="nxn"), InfoNCEBinaryConfig(), SoftmaxCEConfig()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_equal_vectors(tmp_path, case, loss):
    """All cosines are 1: every negative that counts makes the loss of its anchor grow, from log 1 to log 2."""
    pairs, wanted = CASES[case]
    titles = {"item_id": list(range(4)), **dict.fromkeys(TEXT_FIELDS[1:], [""] * 4), "ocr_cover": TITLES}
    groups = [Group(f"r{i}", i, query, np.array([d]), np.array([4], np.int32), np.array([1], np.int32))
              for i, (query, d) in enumerate(pairs)]  # fmt: skip
    with write_folder(tmp_path / "r", kind="records") as out:
        write_records(groups, Items({"items": pa.table(titles)}), out, RecordsConfig(1, 0), 0)
    records = RecordsReader(tmp_path / "r").read(range(2))
    batch = padded_batch([encode_groups(records, IdHasher(IdConfig(8, 8, 8, 8)))], 2, 1, 0)
    same = np.ones((2, 1), np.float32)
    value, _ = build_loss(loss)(jnp.asarray(same), jnp.asarray(same), jnp.float32(0.0), batch)
    np.testing.assert_allclose(value, wanted, atol=1e-6)
