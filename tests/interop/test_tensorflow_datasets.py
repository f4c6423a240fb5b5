"""The shards in TensorFlow, as a pipeline that knows nothing of this project reads them: by tensorflow-datasets."""

import numpy as np
import pytest
from tiny import tiny_experiment

pytestmark = pytest.mark.interop
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (make interop adds it)")

import tensorflow_datasets as tfds  # noqa: E402

from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS  # noqa: E402
from crops_jax.records import RecordsReader  # noqa: E402

# Other libraries' deprecations are not ours to fail on.
pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore")]
DOCUMENTS = ("item_id", "doc_key", "label", "source", "own", *COUNTERS)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A records folder of two shards and a validation split."""
    return tiny_experiment(tmp_path_factory.mktemp("work"), validation_share=0.3).arm_folder("records")


def test_every_group_of_every_shard_is_read(records):
    builder = tfds.builder_from_directory(str(records))
    for split in ("train", "validation"):
        reader = RecordsReader(records, split)
        ours = {record.request_id: record for record in reader.read(range(len(reader)))}
        dataset = builder.as_dataset(split=split)
        assert isinstance(dataset, tf.data.Dataset) and builder.info.splits[split].num_examples == len(ours) > 0
        seen = set()
        for group in tfds.as_numpy(dataset):
            record = ours[group["request_id"].decode()]
            seen.add(record.request_id)
            told = (group["user_id"], group["query"].decode(), group["query_key"])
            assert told == (record.user_id, record.query, record.query_key)
            for name in DOCUMENTS:
                np.testing.assert_array_equal(group["docs"][name], getattr(record, name))
            for name in TEXT_FIELDS:
                assert [text.decode() for text in group["docs"][name]] == getattr(record, name)
        assert seen == ours.keys()


def test_the_usual_ways_to_read_a_part_work(records):
    whole = len(RecordsReader(records))
    half = tfds.builder_from_directory(str(records)).as_dataset(split="train[:50%]", shuffle_files=True)
    assert len(list(half)) == round(whole / 2)
    batches = tfds.builder_from_directory(str(records)).as_dataset(split="train").ragged_batch(8)
    assert sum(int(batch["docs"]["label"].bounding_shape()[0]) for batch in batches) == whole
    assert all(int(tf.reduce_max(batch["docs"]["label"])) == 5 for batch in batches)
