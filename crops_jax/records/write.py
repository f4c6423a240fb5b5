"""Groups -> TFRecord shards that tensorflow-datasets reads: here in one process, of items held in memory.

`records.workers` does the same of mined candidates of any size, part by part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from crops_jax.artifacts.folders import Folder
from crops_jax.errors import InputError
from crops_jax.labels import Group, LabelsConfig
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.normal_text import normal_form
from crops_jax.progress import progress
from crops_jax.records import tokens
from crops_jax.records.features import Record, encode_example
from crops_jax.records.items import Items
from crops_jax.records.make import make_records
from crops_jax.records.provenance import provenance
from crops_jax.records.shards import Split, finish, open_shards
from crops_jax.records.tally import Tally
from crops_jax.records.tfrecord import frame
from crops_jax.stable_hash import text_keys
from crops_jax.text.tokenizer import Tokenizer

_AT_ONCE = 4096  # groups made together
_TOKENISED_AT_ONCE = 512  # records
Framed = tuple[Split, bytes, np.ndarray]  # a record as it stands in a shard, and its provenance


@dataclass(frozen=True)
class RecordsConfig:
    """How groups are cut into shards."""

    shards: int = 4
    """Number of shard files for training; the validation split is one more."""
    validation_share: float = 0.02
    """Share of the queries whose groups are held out as the split "validation", which is never trained on; 0 for none.
    It is drawn by the query's text alone: the same queries in every arm and for every seed."""
    tokenize: bool = False
    """Store token ids beside the texts, for a training run that waits for its data (data_wait_share above 0.02). They
    belong to one tokeniser and one text config, which such shards insist on."""
    workers: int = 0
    """Processes that make groups; 0 takes one a core. The shards do not depend on it."""

    def __post_init__(self):
        problems = []
        if not 1 <= self.shards <= 99999:
            problems.append(f"shards: {self.shards} is not within 1..99999")
        if not 0 <= self.validation_share < 1:
            problems.append(f"validation_share: {self.validation_share} is not within 0..1")
        if self.workers < 0:
            problems.append(f"workers: {self.workers} is negative")
        if problems:
            raise InputError("records config", problems)


def held_out(query: str, share: float) -> bool:
    """Whether a query belongs to the validation split; queries that are one (`normal_text`) go together."""
    return _is_held_out(int(text_keys([normal_form(query)])[0]), share)


def _is_held_out(query_key: int, share: float) -> bool:
    return query_key < share * 2**63


@dataclass(frozen=True)
class RecordMaker:
    """What turns groups into records: the documents they name, and how they are written."""

    items: Items
    validation_share: float
    tokenizer: Tokenizer | None = None  # stores its token ids too
    fields: tuple[str, ...] = TEXT_FIELDS  # those that the model reads
    min_positive: int | None = LabelsConfig.min_positive  # `make_records`

    def framed(self, groups: Iterable[Group], tally: Tally) -> Iterator[Framed]:
        """The records of these groups in their order, ready to be written; what becomes of groups is counted."""
        groups = iter(groups)
        while block := list(islice(groups, _AT_ONCE)):
            for record in self._with_tokens(make_records(block, self.items, self.fields, self.min_positive, tally)):
                split: Split = "validation" if _is_held_out(record.query_key, self.validation_share) else "train"
                yield split, frame(encode_example(record)), provenance(record)

    def _with_tokens(self, records: Iterator[Record]) -> Iterator[Record]:
        if self.tokenizer is None:
            yield from records
            return
        while part := list(islice(records, _TOKENISED_AT_ONCE)):
            yield from tokens.add_tokens(part, self.tokenizer)


def write_records(
    groups: Iterable[Group],
    items: Items,
    out: Folder,
    config: RecordsConfig,
    seed: int,
    tokenizer: Tokenizer | None = None,
    fields: tuple[str, ...] = TEXT_FIELDS,
    min_positive: int = LabelsConfig.min_positive,
) -> dict[str, Any]:
    """Writes the groups as shards into `out`, notes the counts in `out.counts` and returns them.

    Queries that are one (`normal_text`), and documents of one text, have one key. The same groups and seed give the
    same bytes. Rejects are counted by reason (`make.make_records`).

    Args:
      tokenizer: stores its token ids too.
      fields: those that the model reads (`TextConfig.field_order`).
      min_positive: the lowest label of a positive; a group without one is left out.

    Raises:
      InputError: no group is left to train on.
    """
    maker, tally = RecordMaker(items, config.validation_share, tokenizer, fields, min_positive), Tally()
    with open_shards(out.path, config.shards, config.validation_share > 0, seed) as splits:
        for split, framed, found in maker.framed(progress(groups, "writing records", unit="group"), tally):
            splits[split].write(framed, found)
    held = {split: shards.held for split, shards in splits.items()}
    return finish(out, held, tally, None if tokenizer is None else tokens.made_by(tokenizer), None)
