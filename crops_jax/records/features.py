"""What a record holds: one query group, as a Python value, as a tf.train.Example and as a tfds FeaturesDict.

The Example is built and parsed with the protobuf classes that tensorflow-datasets ships: the same bytes as its own
serialiser writes (a test compares them), without that serialiser's and its numpy parser's per-field checks, which
cost several times the work itself on groups of 16 documents. tensorflow-datasets is imported inside the functions,
so that this module can be imported without it.

Tokenised shards hold the texts and, beside them, their token ids (1.7 times the size): reading the texts takes about 4
microseconds a document where tokenising takes 80 (benchmarks/input_pipeline.py), and with them a shard still says what
it holds to people, to the sparse model and to JSON lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from crops_jax.errors import InputError
from crops_jax.labels import LETTERS
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS

FORMAT = 2  # of the records; 1 had dense keys and no `own`
_WIDE = ("item_id", "doc_key", *COUNTERS)  # int64 a document
_NARROW = ("label", "source", "own")  # int32 a document
UNKNOWN_COUNT = -1  # a counter the item table has no value for
_IDS = np.dtype("<i4")  # token ids on disk: int32 as bytes parse several times faster than a list of int64


@dataclass(frozen=True)
class TokenIds:
    """The texts of a group as a tokeniser cut and framed them, without padding."""

    query: np.ndarray  # int32[t]
    docs: np.ndarray  # int32[sum of length]; one document after the other
    length: np.ndarray  # int32[n]; tokens of each document


@dataclass(frozen=True)
class Record:
    """One search event and its graded documents; every per-document field has the same length."""

    request_id: str
    user_id: int
    query: str
    query_key: int  # 63 bits; one for all spellings of the query (`stable_hash.text_keys`)
    item_id: np.ndarray  # int64[n]; negative for documents a language model wrote
    doc_key: np.ndarray  # int64[n]; 63 bits; one for all documents of one text
    label: np.ndarray  # int32[n]; 1..5 (paper Table 1)
    source: np.ndarray  # int32[n]; bit set of labels.SOURCES
    own: np.ndarray  # int32[n]; 1: a document of this search, 0: drawn from its query's pool
    ocr_cover: list[str]
    photo_caption: list[str]
    keyword: list[str]
    click_query: list[str]
    play_cnt: np.ndarray  # int64[n]; -1 where unknown, as in the other counters
    like_cnt: np.ndarray
    long_view_cnt: np.ndarray
    download_cnt: np.ndarray
    tokens: TokenIds | None = None  # of tokenised shards

    def __len__(self) -> int:
        return len(self.item_id)


def record_features(tokenised: bool = False) -> Any:
    """The `tfds.features.FeaturesDict` of a record, with or without token ids; documents are one `Sequence`."""
    import tensorflow_datasets as tfds

    f = tfds.features
    docs = {name: f.Scalar(np.int64, doc=_DOC.get(name)) for name in _WIDE}
    docs |= {name: f.Scalar(np.int32, doc=_DOC.get(name)) for name in _NARROW}
    docs |= {name: f.Text() for name in TEXT_FIELDS}
    features = {
        "request_id": f.Text(),
        "user_id": f.Scalar(np.int64),
        "query": f.Text(),
        "query_key": f.Scalar(np.int64, doc=_DOC["query_key"]),
    }
    if tokenised:
        docs["tokens"] = f.Scalar(np.int32, doc=_DOC["tokens"])
        for name in ("query_ids", "doc_ids"):
            features[name] = f.Tensor(shape=(None,), dtype=np.int32, encoding="bytes", doc=_DOC[name])
    return f.FeaturesDict(features | {"docs": f.Sequence(docs)})


_DOC = {
    "query_key": "hash of the query's normal form, 63 bits",
    "doc_key": "hash of the document's normal form, 63 bits",
    "item_id": "negative for documents a language model wrote",
    "label": "hierarchical label, 1..5",
    "source": "bit set of sources: " + ", ".join(f"{letter} {1 << bit}" for bit, letter in enumerate(LETTERS)),
    "own": "1: a document of this search, 0: drawn from the pool of its query",
    "tokens": "tokens of the document in doc_ids",
    "query_ids": "token ids of the query",
    "doc_ids": "token ids of all documents, one document after the other",
}


def encode_example(record: Record) -> bytes:
    """The record as a serialised tf.train.Example, keys in sorted order so that equal records are equal bytes."""
    example = protos().Example()
    feature = example.features.feature  # filled in place: putting messages together copies them, in twice the time
    feature["request_id"].bytes_list.value.append(record.request_id.encode())
    feature["user_id"].int64_list.value.append(record.user_id)
    feature["query"].bytes_list.value.append(record.query.encode())
    feature["query_key"].int64_list.value.append(record.query_key)
    for name in (*_WIDE, *_NARROW):
        feature["docs/" + name].int64_list.value.extend(getattr(record, name).tolist())
    for name in TEXT_FIELDS:
        feature["docs/" + name].bytes_list.value.extend([text.encode() for text in getattr(record, name)])
    if (tokens := record.tokens) is not None:
        feature["docs/tokens"].int64_list.value.extend(tokens.length.tolist())
        feature["query_ids"].bytes_list.value.append(tokens.query.astype(_IDS).tobytes())
        feature["doc_ids"].bytes_list.value.append(tokens.docs.astype(_IDS).tobytes())
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes, place: str) -> Record:
    """The record in a serialised tf.train.Example.

    Raises:
      InputError: at `place`: not an Example, or fields missing or of unequal lengths; all are listed.
    """
    example_pb2 = protos()
    try:
        feature = example_pb2.Example.FromString(data).features.feature
        values = {
            "request_id": feature["request_id"].bytes_list.value[0].decode(),
            "user_id": feature["user_id"].int64_list.value[0],
            "query": feature["query"].bytes_list.value[0].decode(),
            "query_key": feature["query_key"].int64_list.value[0],
        }
        for name in _WIDE:
            values[name] = np.fromiter(feature["docs/" + name].int64_list.value, np.int64)
        for name in _NARROW:
            values[name] = np.fromiter(feature["docs/" + name].int64_list.value, np.int32)
        for name in TEXT_FIELDS:
            values[name] = [text.decode() for text in feature["docs/" + name].bytes_list.value]
        tokens = _token_ids(feature) if "doc_ids" in feature else None
    except Exception as error:  # DecodeError, IndexError, UnicodeDecodeError: the message says which
        raise InputError(place, f"is not a record of this data set ({type(error).__name__}: {error})") from None
    n = len(values["item_id"])
    wrong = [f"docs/{k} has {len(values[k])} values, docs/item_id has {n}"
             for k in (*_WIDE[1:], *_NARROW, *TEXT_FIELDS) if len(values[k]) != n]  # fmt: skip
    if tokens is not None and (len(tokens.length) != n or tokens.length.sum() != len(tokens.docs)):
        wrong.append(f"docs/tokens counts {tokens.length.tolist()} tokens of {n} documents, doc_ids has "
                     f"{len(tokens.docs)}")  # fmt: skip
    if wrong:
        raise InputError(place, wrong)
    return Record(**values, tokens=tokens)


def _token_ids(feature: Any) -> TokenIds:
    query, docs = (np.frombuffer(feature[name].bytes_list.value[0], _IDS) for name in ("query_ids", "doc_ids"))
    return TokenIds(query, docs, np.fromiter(feature["docs/tokens"].int64_list.value, np.int32))


@cache
def protos() -> Any:
    """The module of tf.train.Example, from tensorflow-datasets, whose import takes a second."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2
