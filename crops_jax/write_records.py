"""`python -m crops_jax.write_records --config FILE`: candidates -> graded groups -> TFRecord shards of one arm.

Also trains the tokeniser on the train day's texts, where the experiment has one of its own (`vocabulary`).
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from crops_jax.artifacts.folders import Folder, read_json, write_folder, write_json
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.command_line import from_command_line, next_command
from crops_jax.config import Experiment, SharedFolder, to_json
from crops_jax.errors import InputError, run_command
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import PLACES
from crops_jax.logs.sealed import verify_tables
from crops_jax.records.coverage import Coverage
from crops_jax.records.origin import MADE_OF, mined_identity
from crops_jax.records.parts import PartSettings
from crops_jax.records.workers import Mined, remove_parts, write_mined
from crops_jax.report.coverage import coverage_html
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.text.hashed_ids import IdHasher
from crops_jax.text.tokenizer import Tokenizer, train_tokenizer


def settings(experiment: Experiment) -> dict:
    """What the shards depend on, besides their inputs."""
    text = ("text", "vocabulary", "vocabulary_of") if experiment.records.tokenize else ()
    settings = {name: to_json(getattr(experiment, name)) for name in ("labels", "records", "seed", *text)}
    del settings["records"]["workers"]  # on which they do not depend
    return settings | {"fields": sorted(experiment.text.field_order)}  # by which documents are told apart


def inputs(experiment: Experiment) -> dict[str, Path]:
    """The folders that the shards are made from."""
    own_tokenizer = experiment.records.tokenize and experiment.vocabulary is not None
    names: tuple[SharedFolder, ...] = ("mined", "logs", "tokenizer") if own_tokenizer else ("mined", "logs")
    return {name: experiment.folder(name) for name in names}


def run(experiment: Experiment) -> Path:
    """Labels, groups and writes; returns the records folder.

    Raises:
      InputError: an input is missing or damaged, the shards are another arm's, or token ids are asked for by a model
        that reads hashed ids.
    """
    experiment.require_search()
    if arm := experiment.input.records_of:
        raise InputError(
            "input.records_of", f"the shards that are read are those of {arm!r}: write them with its config"
        )
    if problems := experiment.labels.without_groups():
        raise InputError("labels", problems)
    logs, mined = experiment.ready_mined()
    engine = experiment.mining.engine
    verify_tables(mined, engine)
    verify_tables(logs, engine, (PLACES["items"],))  # most Parquet files know no checksum
    made_from = inputs(experiment)
    source = Mined(mined / "candidates.parquet", mined / "knowledge.parquet", logs, made_from)
    text = _tokenizer(experiment).config if experiment.records.tokenize else None
    share, fields = experiment.records.validation_share, experiment.text.field_order
    part = PartSettings(experiment.labels, share, fields, text)
    target = experiment.arm_folder("records")
    scratch = target.with_name(f".{target.name}.parts")
    with write_folder(target, kind="records", config=settings(experiment), inputs=made_from) as out:
        coverage = write_mined(source, out, experiment.records, part, experiment.seed, engine, scratch)
        _write_coverage(coverage, experiment, mined, out)
        out.counts[MADE_OF] = mined_identity(logs, mined)
    remove_parts(scratch)
    return target


def _write_coverage(coverage: Coverage, experiment: Experiment, mined: Path, out: Folder) -> None:
    """Writes coverage.json and coverage.html."""
    rejects = mined / "rejects.json"
    assembly = {reason: n for reason, n in out.counts["assembly"].items() if reason not in ("groups", "documents")}
    left_out = {
        "mining": read_json(rejects) if rejects.is_file() else {},
        "groups": assembly,
        "records": out.counts["rejects"],
    }
    report = {"arm": experiment.name, **coverage.report(experiment.labels), "left_out": left_out}
    write_json(out / "coverage.json", report)
    (out / "coverage.html").write_text(coverage_html(report), encoding="utf-8")


def _tokenizer(experiment: Experiment) -> Tokenizer:
    match featurizer_of(experiment):
        case Tokenizer() as tokenizer:
            return tokenizer
        case IdHasher():
            raise InputError("records.tokenize", "the sparse model reads hashed ids, made from texts; set it to False")


def tokenizer_settings(experiment: Experiment) -> dict:
    """What a tokeniser of the experiment's own depends on, besides the logs."""
    return {name: getattr(experiment, name) for name in ("vocabulary", "vocabulary_of")}


def run_tokenizer(experiment: Experiment) -> Path:
    """Trains the tokeniser on the corpus and the train day's queries and returns its folder."""
    logs, target = experiment.ready_logs(), experiment.folder("tokenizer")
    config = tokenizer_settings(experiment)
    verify_tables(logs, experiment.mining.engine, (PLACES["items"], "train/searches.parquet"))
    with write_folder(target, kind="tokenizer", config=config, inputs={"logs": logs}) as out:
        queries = open_logs(logs).read("searches", "train", ["query"])["query"].to_pylist()
        texts = read_corpus(logs).texts + queries
        train_tokenizer(texts, experiment.vocabulary, out / "tokenizer.json", experiment.vocabulary_of)
    return target


def main() -> None:
    """Writes the shards of the experiment of the command line."""
    experiment = from_command_line("write_records")
    if experiment.vocabulary is not None:
        print(f"tokeniser: {run_tokenizer(experiment)}")
    started = monotonic()
    target = run(experiment)
    splits = read_manifest(target)["counts"]["splits"]
    groups = sum(split["groups"] for split in splits.values())
    print(f"shards: {target}, {groups:,} groups in {monotonic() - started:.1f} s")
    print(f"what the sources reach: {target / 'coverage.html'}\nnext: {next_command('train')}")


if __name__ == "__main__":
    run_command(main)
