"""The folders of an experiment on suggestions: what each is made from, what it depends on, and who makes it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from crops_jax.artifacts.folders import unfinished, write_folder
from crops_jax.config import Experiment, to_json
from crops_jax.handover.towers import export_towers
from crops_jax.runs.featurizer import tokenizer_of
from crops_jax.runs.suggestions import (
    aligned_encoder,
    encoder_of,
    index_folder,
    related_queries,
    trained_writer,
    trained_writer_model,
    with_reference,
    with_related,
    writer_of,
)
from crops_jax.suggestions.alignment import write_alignment_records
from crops_jax.suggestions.answers import ANSWERS, write_answers
from crops_jax.suggestions.arms import AlignedEncoderConfig, WriterConfig
from crops_jax.suggestions.examples import read_examples
from crops_jax.suggestions.export import export_writer
from crops_jax.suggestions.mined_day import mine_suggestions
from crops_jax.suggestions.prefix_queries import read_prefix_queries, shown_by_one
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.records import write_examples
from crops_jax.suggestions.related import index_of_day
from crops_jax.suggestions.searched import read_searched
from crops_jax.suggestions.semantic_index import encoder_hash, index_config
from crops_jax.suggestions.suggester import SHOWN, Asked
from crops_jax.suggestions.testset import KIND as TEST_KIND
from crops_jax.suggestions.testset import build_suggestion_testset, read_suggestion_testset
from crops_jax.suggestions.writable import LeftOut, writable_examples

EXPERIMENT, PREFIX_QUERY = "experiment.json", "prefix_query.parquet"
_GOLDEN = 24  # requests whose suggestions are exported with a writer


def mining_settings(e: Experiment) -> dict[str, Any]:
    """What mining depends on, besides the logs."""
    config = to_json(e.suggest_mining)
    del config["engine"]  # which gives the same rows as any other
    return {"mining": config}


def run_mining(e: Experiment) -> Path:
    """Mines the train day's suggestions and returns the folder."""
    logs, target, settings = e.ready_logs(), e.folder("mined_suggestions"), mining_settings(e)
    with (
        unfinished(target, {"logs": logs}, settings) as work,
        write_folder(target, kind=target.name, config=settings, inputs={"logs": logs}) as out,
    ):
        mine_suggestions(logs, out, e.suggest_mining, work)
    return target


def test_settings(e: Experiment) -> dict[str, Any]:
    """What the test set depends on, besides the logs."""
    return {**mining_settings(e), "test": to_json(e.suggest_test)}


def run_testset(e: Experiment) -> Path:
    """Writes what the test day asks and returns the folder."""
    logs, target = e.ready_logs(), e.folder("suggestion_testset")
    with write_folder(target, kind=TEST_KIND, config=test_settings(e), inputs={"logs": logs}) as out:
        build_suggestion_testset(logs, out, e.suggest_test, e.suggest_mining)
    return target


def index_settings(e: Experiment) -> dict[str, Any]:
    """What a semantic index depends on, as it says itself."""
    config = writer_of(e)
    return index_config(config.ids, encoder_hash(e.arm("train", config.encoder)))


def index_inputs(e: Experiment) -> dict[str, Path]:
    """The folders that a semantic index is made from."""
    return {"encoder": e.arm("train", writer_of(e).encoder), "mined": e.folder("mined_suggestions")}


def run_index(e: Experiment) -> Path:
    """Codes the day's queries with the vectors of the encoder that the arm names, and returns the folder."""
    config, target, mined = writer_of(e), index_folder(e), e.ready("mined_suggestions")
    encoder = aligned_encoder(e, config.encoder)
    index = index_of_day(read_searched(mined), encoder.queries, encoder.hash, config.ids)
    index.save(target, index_inputs(e))
    return target


def record_inputs(e: Experiment) -> dict[str, Path]:
    """The folders that an arm's records are made from."""
    made_from = {"mined": e.folder("mined_suggestions")}
    if e.vocabulary is not None:
        made_from["tokenizer"] = e.folder("tokenizer")
    if isinstance(e.suggest, WriterConfig):
        made_from |= {"semantic_index": index_folder(e)} if e.suggest.encoder else {}
        made_from |= {"reference": e.arm("train", e.suggest.start)} if e.suggest.rwr is not None else {}
    return made_from


def record_settings(e: Experiment) -> dict[str, Any]:
    """What an arm's records depend on, besides what they are made from."""
    if isinstance(e.suggest, AlignedEncoderConfig):
        return {"pairs": to_json(e.suggest.pairs), "records": to_json(e.records), "text": to_json(e.text),
                "seed": e.seed}  # fmt: skip
    config = writer_of(e)
    told = {"losers": config.losers, "shards": config.shards, "recent": config.recent, "seed": e.seed,
            "related": to_json(config.related) if config.encoder else None}  # fmt: skip
    told |= {"query": config.max_query_tokens, "text": to_json(e.text)}
    if config.rwr is not None:
        told |= {"reference": {"source": config.max_source_tokens, "dtype": config.dtype}}
    return told


def run_records(e: Experiment) -> Path:
    """Writes what an arm learns from and returns the folder."""
    target, mined = e.arm_folder("records"), e.ready("mined_suggestions")
    with write_folder(target, kind="records", config=record_settings(e), inputs=record_inputs(e)) as out:
        if isinstance(e.suggest, AlignedEncoderConfig):
            write_alignment_records(
                mined, out, e.suggest.pairs, e.records, e.seed, tokenizer_of(e) if e.records.tokenize else None,
                e.text.field_order,
            )  # fmt: skip
            return target
        config = writer_of(e)
        text, left_out = WriterText(tokenizer_of(e), config), LeftOut()
        examples = writable_examples(read_examples(mined, config.losers), text, left_out)
        if (encoder := encoder_of(e)) is not None:
            pairs = read_prefix_queries(mined)
            examples = with_related(examples, related_queries(e, encoder, pairs), shown_by_one(pairs))
        if config.rwr is not None:
            examples = with_reference(examples, trained_writer_model(e, config.start), text)
        counts = write_examples(examples, out, config.shards, e.seed)
        out.counts.update(asdict(left_out))
    if left_out.answers_too_long:
        print(f"   {e.name}: {left_out.answers_too_long:,} answers have more than {config.max_query_tokens} tokens "
              f"(suggest.max_query_tokens) and are left out; {counts['suggestions']:,} are kept",
              file=sys.stderr)  # fmt: skip
    return target


def answer_settings(e: Experiment) -> dict[str, Any]:
    """What an arm's suggestions depend on, besides the run."""
    config = writer_of(e)
    return {"title": e.title, "beam": to_json(config.beam), "known": config.known, "count": SHOWN}


def answer_inputs(e: Experiment) -> dict[str, Path]:
    """The folders that an arm's suggestions are made from."""
    return {"train": e.arm_folder("train"), "testset": e.folder("suggestion_testset")}


def run_answers(e: Experiment) -> Path:
    """Answers the test day with the trained arm and returns the folder."""
    test, target = read_suggestion_testset(e.ready("suggestion_testset")), e.arm_folder("eval")
    settings, made_from = answer_settings(e), answer_inputs(e)
    writer = trained_writer(e, encoder_of(e))
    with write_folder(target, kind=ANSWERS, config=settings, inputs=made_from) as out:
        write_answers(writer, test, out)
        out.counts.update(writer.counts)
    return target


def run_export(e: Experiment) -> Path:
    """Exports the trained arm, with all that finds its related queries, and returns the folder."""
    test, target = read_suggestion_testset(e.ready("suggestion_testset")).taken, e.arm_folder("export")
    settings, made_from, some = answer_settings(e), answer_inputs(e), slice(0, _GOLDEN)
    asked = Asked(["", *test.prefixes[some]], [None, *test.users[some]], [[], *test.recent[some]])
    encoder = encoder_of(e)
    writer = trained_writer(e, encoder)
    with write_folder(target, kind="export", config=settings, inputs=made_from) as out:
        export_writer(writer, asked, out)
        (out / EXPERIMENT).write_text(json.dumps(to_json(e), indent=1) + "\n", encoding="utf-8")
        if encoder is not None:
            export_towers(encoder.model, encoder.tokenizer, out)
            shutil.copytree(index_folder(e), out / "semantic_index")
            pairs = read_prefix_queries(e.ready("mined_suggestions"))
            pq.write_table(pairs.drop_columns("only_request"), out / PREFIX_QUERY)  # which is for training alone
    return target
