"""The dual encoder as a task: graded groups from the arm's shards, both towers, one loss over the global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.artifacts.folders import Folder
from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.batches.stream import Batches, TrainBatches
from crops_jax.config import Experiment
from crops_jax.cost.flops import Texts, train_step_flops
from crops_jax.errors import InputError
from crops_jax.handover.towers import export_towers
from crops_jax.models import dual_encoder
from crops_jax.models.config import SparseMlpConfig
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.frozen_states import FrozenStates
from crops_jax.parallel.sharding import RULES, rows_here
from crops_jax.records import RecordsReader, read_items
from crops_jax.records.origin import mined_identity, require_shards_of
from crops_jax.records.provenance import COMPOSED, differing
from crops_jax.runs import start
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.frozen_states import FilledBatches, frozen_states
from crops_jax.runs.known_positives import BatchesWithKnown, KnownPositives
from crops_jax.runs.task import Round, RoundInputs, Task
from crops_jax.stable_hash import mix
from crops_jax.text.featurizer import Featurizer, fingerprint
from crops_jax.training import dual_encoder as training
from crops_jax.training.dual_encoder import DualEncoderObjective
from crops_jax.training.hints import Hints
from crops_jax.training.throughput import BatchCounts, Counts
from crops_jax.training.validation import Validation


def seed_of(seed: int, part: int) -> int:
    """The seed of a round; the first round has the run's own. Two runs of neighbouring seeds share none of them."""
    return seed if part == 0 else int(mix(np.asarray(seed), np.asarray(part)) >> np.uint64(33))


def learned_from(experiment: Experiment) -> dict[str, Path]:
    """The folders that a dual encoder is trained on: the mined one, too, where more is read than its shards hold."""
    more = experiment.negatives is not None or experiment.input.known_positives
    mined = {"mined": experiment.folder("mined")} if more else {}
    return {"records": experiment.arm_folder("records")} | mined


class DualEncoderTask(Task):
    """Trains on the arm's records, in one round."""

    def __init__(self, experiment: Experiment):
        super().__init__(experiment, DualEncoderObjective(experiment.loss, experiment.gradcache))
        if experiment.input.known_positives and not experiment.loss.mask_duplicate_ids:
            raise InputError("input.known_positives", "is of no use without loss.mask_duplicate_ids")
        if problems := experiment.without_anchors():
            raise InputError("nothing would be trained", problems)
        self._frozen_states: FrozenStates | None = None

    @cached_property
    def featurizer(self) -> Featurizer:
        """What turns texts into model input."""
        return featurizer_of(self.experiment)

    @cached_property
    def records(self) -> RecordsReader:
        """The arm's groups, those of the first round."""
        return RecordsReader(self.experiment.ready("records"), sources=self.experiment.input.sources)

    @cached_property
    def _hints(self) -> Hints:
        return Hints(self.experiment.input, self.featurizer, self.records.token_ids is not None)

    @property
    def described(self) -> DualEncoder:
        """Both towers and log tau."""
        return dual_encoder.abstract(self.experiment.model)

    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> Batch:
        """A batch split over `mesh` by rows.

        Raises:
          InputError: the batch's shards do not divide over the mesh.
        """
        experiment, config = self.experiment, self.experiment.input
        RULES.check_rows(mesh, config.shards, "input.shards")
        queries = config.batch_queries
        docs = queries * config.docs_per_query

        def rows(*shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
            spec = RULES.spec(mesh, ("batch",) + (None,) * (len(shape) - 1))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

        def states(*shape: int) -> jax.ShapeDtypeStruct | None:
            kept = experiment.model.frozen.keep_states
            return rows(*shape, experiment.model.backbone.width, dtype=jnp.float32) if kept else None

        def padded(texts: int, slots: int) -> Tokens:
            return Tokens(rows(texts, slots), rows(texts), states(texts, slots))

        def packed(texts: int, all_rows: int, slots: int) -> PackedTokens:
            shape = config.shards, all_rows // config.shards, slots
            tokens, places = rows(*shape), rows(config.shards, texts // config.shards)
            return PackedTokens(tokens, tokens, tokens, places, places, states(*shape))

        match experiment.model.backbone, config.packing:
            case SparseMlpConfig(ids=ids), _:
                (q_fields, q_bags), (d_fields, d_bags) = ids.query_tables, ids.doc_tables
                query = IdFeatures(rows(queries, len(q_fields)), rows(queries, len(q_bags), ids.max_query_terms))
                doc = IdFeatures(rows(docs, len(d_fields)), rows(docs, len(d_bags), ids.max_doc_terms))
            case _, None:
                query = padded(queries, experiment.text.max_query_tokens)
                doc = padded(docs, experiment.text.max_doc_tokens)
            case _, packing:
                query = packed(queries, packing.query_rows, packing.query_row_tokens)
                doc = packed(docs, packing.doc_rows, packing.doc_row_tokens)
        return Batch(
            query=query, docs=doc, query_key=rows(queries, 2), doc_key=rows(docs, 2), label=rows(docs),
            source=rows(docs), valid=rows(docs, dtype=jnp.bool_),
            known=rows(queries, config.known_positives, 2) if config.known_positives else None,
        )  # fmt: skip

    def checks(self) -> dict[str, Callable[[], str]]:
        """The tokeniser (or hasher), the shards and that batches can be made of them, the weights to start from."""
        return {"tokenizer": self._told_featurizer, "records": self._told_records, "weights": self.told_start}

    def _told_featurizer(self) -> str:
        return fingerprint(self.featurizer)[:12]

    def _told_records(self) -> str:
        return f"{len(self.records)} groups, {self.identity()['shards'][:12]}"

    def check_start(self) -> str:
        """The weights that `model.init_from` names."""
        return start.check(self.experiment)

    @property
    def made_from(self) -> dict[str, Path]:
        """As `learned_from`."""
        return learned_from(self.experiment)

    def identity(self) -> dict[str, str]:
        """The fingerprints of shards and tokeniser, and of what is read beside them; and that batches can be made."""
        TrainBatches(self.records, self.featurizer, self.experiment.input)
        self._check_labels()
        beside = self._read_beside()
        more = {} if beside is None else mined_identity(*beside)
        return {"shards": self.records.fingerprint(), "tokenizer": fingerprint(self.featurizer), **more}

    def _read_beside(self) -> tuple[Path, Path] | None:
        """(logs, mined) of which the run reads more than its shards hold; None where the shards are all."""
        return self._ready_mined() if self.experiment.input.known_positives else None

    def _ready_mined(self) -> tuple[Path, Path]:
        """(logs, mined), as `Experiment.ready_mined`, of which the shards were made."""
        logs, mined = self.experiment.ready_mined()
        mend = "make it again with `python -m crops_jax.write_records --config FILE`"
        require_shards_of(self.experiment.ready("records"), logs, mined, mend)
        return logs, mined

    def _check_labels(self) -> None:
        """Groups have the labels, sources and caps that they were written with, whatever the config says since.

        Recipes that draw groups of their own validate with the shards alone: these have other documents.
        """
        e, written = self.experiment, self.records.labels
        if written is None:
            return
        own_groups = e.negatives is not None
        wrong = differing(written, e.labels, ("levels", "min_positive") if own_groups else COMPOSED)
        read, credited = (tuple(s for s in of if s in written["levels"])
                          for of in (e.input.sources or written["sources"], e.trained_sources()))  # fmt: skip
        if not own_groups and {*read} != {*credited}:
            wrong.append(f"labels.sources: the groups are read with {', '.join(read)}, and "
                         f"{', '.join(credited)} is asked for")  # fmt: skip
        if wrong:
            mend = "write the shards with these labels, or leave them as they were"
            raise InputError(str(self.records.folder), [f"{told}; {mend}" for told in wrong])

    def first_model(self, mesh: Mesh) -> DualEncoder:
        """The weights that `model.init_from` names, else random ones from `seed`."""
        return start.first_model(self.experiment, mesh)

    def open(self, part: Round, model: DualEncoder, mesh: Mesh, again: bool) -> RoundInputs:
        """The arm's records."""
        return RoundInputs(self._batches(self.records, model, mesh))

    def _batches(self, records: RecordsReader, model: DualEncoder, mesh: Mesh, part: int = 0) -> Batches:
        """The batches of a round; each round has an order of its own."""
        config = replace(self.experiment.input, seed=seed_of(self.experiment.input.seed, part))
        batches = TrainBatches(records, self.featurizer, config, rows_here(mesh, config.shards))
        states, known = self.frozen_states(model), self._known_positives
        filled = batches if states is None else FilledBatches(batches, states, model, mesh)
        return filled if known is None else BatchesWithKnown(filled, known)

    @cached_property
    def _known_positives(self) -> KnownPositives | None:
        """The positives of the train day, read once; None where the group alone counts."""
        e = self.experiment
        if not e.input.known_positives:
            return None
        logs, mined = self._ready_mined()
        keys = read_items(logs, mined / "knowledge.parquet").keys(e.text.field_order)
        labels = replace(e.labels, sources=e.trained_sources())  # what the arm does not train on it does not know
        return KnownPositives.read(mined / "candidates.parquet", labels, keys, e.input.known_positives)

    def frozen_states(self, model: DualEncoder) -> FrozenStates | None:
        """What the run's frozen layers make of texts, opened once: no step changes them. None where it is not kept."""
        if self._frozen_states is None:
            self._frozen_states = frozen_states(self.experiment, model)
        return self._frozen_states

    def validation(self, mesh: Mesh) -> Validation | None:
        """Recall and NDCG on the held-out groups."""
        e = self.experiment
        if not e.validation.every:
            return None
        reader = RecordsReader(e.ready("records"), "validation", e.input.sources)
        return Validation(reader, self.featurizer, e.validation, e.encode, mesh, e.labels.min_positive)

    def export(self, model: DualEncoder, out: Folder) -> None:
        """A folder per tower."""
        export_towers(model, self.featurizer, out, self.experiment.handover.weights)

    def count(self, batch: Batch) -> BatchCounts:
        """Queries, graded documents and tokens."""
        return training.count(self.experiment.model, batch)

    def hints(self, counts: Counts) -> Iterator[str]:
        """Padding, and waiting for a tokeniser."""
        return self._hints.after_line(counts)

    def slots(self, batch: Batch) -> dict[str, Texts]:
        """Those of both towers."""
        return {"query": training.all_slots(batch.query), "doc": training.all_slots(batch.docs)}

    def step_flops(self, batch: Batch) -> int:
        """Products of both towers and of the loss."""
        slots = self.slots(batch)
        return train_step_flops(self.experiment.model, slots["query"], slots["doc"])
