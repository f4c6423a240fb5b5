"""Query groups on disk: TFRecord shards described by one tensorflow-datasets `FeaturesDict`, and JSON lines.

In: mined candidates, or graded groups and the items' texts. Out: shards with manifest and index, read back in any
order, checksums checked.
"""

from crops_jax.records.features import Record, record_features
from crops_jax.records.items import Items, read_items
from crops_jax.records.read import RecordsReader
from crops_jax.records.write import RecordsConfig, write_records

__all__ = ["Items", "Record", "RecordsConfig", "RecordsReader", "read_items", "record_features", "write_records"]
