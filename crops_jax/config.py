"""Experiment: every room's own config composed into one value, which is saved with every run and read back.

A file in `configs/` defines `EXPERIMENT`, usually a `dataclasses.replace` of another one; `command_line` reads it.
Later verbs read the value that a run saved, so that nobody describes the model twice.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args

from crops_jax.artifacts.manifest import digest_of_files, read_manifest, require_made_from, require_unchanged, verify
from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.batches.config import InputConfig
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.handover.config import HandoverConfig
from crops_jax.hub import local_path
from crops_jax.labels import LabelsConfig
from crops_jax.losses.config import HInfoNCEConfig, LossConfig
from crops_jax.mining.config import AuditConfig, HeldOutConfig, MiningConfig, SimulatedLLMConfig
from crops_jax.models.config import THETA_FILES, DualEncoderConfig, ThetaConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.records import RecordsConfig
from crops_jax.retrieval.config import BM25Config, EncodeConfig, EvaluateConfig, IndexConfig
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.simulator import SimulateConfig
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.suggestions.arms import SuggestConfig
from crops_jax.suggestions.config import SuggestMiningConfig, SuggestTestConfig
from crops_jax.text.tokenizer import TextConfig, VocabularyKind
from crops_jax.training.config import GradCacheConfig, MonitorConfig, OptimConfig, TrainConfig, ValidationConfig

SharedFolder = Literal[
    "logs", "mined", "testsets", "validation_sets", "tokenizer", "audit", "mined_suggestions", "suggestion_testset"
]
ArmFolder = Literal["records", "train", "embeddings", "index", "eval", "export", "bundle", "semantic_index", "item_ids"]
BM25_NAME = "bm25"  # the lexical baseline's folder below workdir, and its row in tables
# Folders below workdir that are no arm's.
RESERVED = {*get_args(SharedFolder), "report", "chain", "days", "compiled", "frozen_states", "theta.cache"}
_MOST_PIECES = 10_000_000  # of a tokeniser that is trained
SETS_OF_DAY: dict[str, SharedFolder] = {"test": "testsets", "validation": "validation_sets"}
_MADE_BY = {
    "logs": "simulate_logs --config FILE` or, for logs of your own, `python -m crops_jax.check_logs DIR",
    "mined": "mine --config FILE",
    "audit": "audit --config FILE",
    "testsets": "mine --config FILE",
    "validation_sets": "mine --config FILE",
    "tokenizer": "write_records --config FILE",
    "mined_suggestions": "suggest --configs FILE...",
    "suggestion_testset": "suggest --configs FILE...",
    "semantic_index": "suggest --configs FILE...",
    "item_ids": "pipeline --configs FILE...",
    "records": "write_records --config FILE",
    "train": "train --config FILE",
    "embeddings": "encode --config FILE",
    "index": "build_index --config FILE",
    "eval": "evaluate --config FILE",
    "export": "export --config FILE",
}


@dataclass(frozen=True)
class Experiment:
    """One experiment: a world or logs, the engine of positives, labels, model, loss, training, evaluation."""

    name: str = "crops"
    """The arm's folder below `workdir`, and its row in the report."""
    title: str = "CroPS"
    """The arm's name in tables."""
    workdir: str = "runs/crops"
    """Folder of the data set: logs, mined, testsets, tokenizer, and one folder an arm."""
    seed: int = 0
    """Seed of everything random outside the simulated world."""
    world: SyntheticWorldConfig | JudgedWorldConfig | None = field(default_factory=SyntheticWorldConfig)
    """The world whose users are simulated; none for a platform's own logs."""
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    """Users, production search and feed of the simulated platform."""
    theta: ThetaConfig = field(default_factory=ThetaConfig)
    """The semantic discriminator of Eqs. 1 and 2."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    """The engine of positives."""
    simulated_llm: SimulatedLLMConfig | None = None
    """Answer P3's prompts with a simulated language model (worlds with hidden items only); none asks the endpoint."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """The judge of the documents that a language model wrote."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """CT, QR and the never-exposed set, from the test day."""
    suggest_mining: SuggestMiningConfig = field(default_factory=SuggestMiningConfig)
    """What is mined from suggestions."""
    suggest_test: SuggestTestConfig = field(default_factory=SuggestTestConfig)
    """What the test day asks of suggestions."""
    suggest: SuggestConfig | GeneratorConfig | None = None
    """Train something else than a dual encoder for search: an arm of `python -m crops_jax.suggest`, or a generator,
    which searches by writing item ids (docs/generative.md). None trains a dual encoder."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Table 1: which sources take part, at which label, how many of each."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """Shards."""
    text: TextConfig = field(default_factory=TextConfig)
    """Tokenizer and lengths."""
    vocabulary: int | None = None
    """Train a tokeniser of this size on the train day's texts; none uses `text.tokenizer` as it is."""
    vocabulary_of: VocabularyKind = "pieces"
    """pieces: a byte-level BPE in Qwen2's style. words: the most frequent words between blanks, as BERT's rows; for
    texts that are anonymous ids, whose letters and digits mean nothing."""
    input: InputConfig = field(default_factory=InputConfig)
    """Batches."""
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """The dual encoder."""
    loss: LossConfig = field(default_factory=HInfoNCEConfig)
    """The training objective."""
    negatives: NegativesConfig | AdoreConfig | None = None
    """Train on clicks and mined negatives, as the recipes before CroPS do; none trains on the arm's graded groups."""
    gradcache: GradCacheConfig = field(default_factory=GradCacheConfig)
    """Micro-batches, for batches whose activations do not fit."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training run."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Evaluation while training."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What the training run tells."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """Corpus encoding."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """The ScaNN index."""
    bm25: BM25Config = field(default_factory=BM25Config)
    """The lexical baseline."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Metrics."""
    handover: HandoverConfig = field(default_factory=HandoverConfig)
    """What is handed over beside the towers."""

    def __post_init__(self) -> None:
        problems = _wrong_values(self, Experiment, "")
        problems += _wrong_name(str(self.name))
        if not str(self.workdir).strip():
            problems.append("workdir: is empty; name a folder, for instance runs/crops")
        if self.vocabulary is not None and not 0 < self.vocabulary <= _MOST_PIECES:
            problems.append(f"vocabulary: {self.vocabulary} is not within 1..{_MOST_PIECES}")
        if not problems:
            problems += self._labels_that_nobody_has() + self._grades_apart()
        if problems:
            raise InputError("experiment", problems)

    def _labels_that_nobody_has(self) -> list[str]:
        """A loss whose anchors are graded higher than any document has nothing to train on."""
        highest = max(self.labels.levels.values())
        return [f"loss.{name}: {least} is above the highest label of labels.levels, {highest}"
                for name, least in self._least_labels().items() if least > highest]  # fmt: skip

    def _least_labels(self) -> dict[str, int]:
        return {name: getattr(self.loss, name, 1) for name in ("min_anchor_label", "min_positive_label")}

    def without_anchors(self) -> list[str]:
        """Why no document of the sources that the arm trains on would be an anchor of its loss."""
        there = sorted({self.labels.levels[source] for source in self.trained_sources()})
        if not there:
            return []
        least = self._least_labels()
        problems = [f"loss.{name}: {label} is above the highest label of the sources that take part, {there[-1]}"
                    for name, label in least.items() if label > there[-1]]  # fmt: skip
        weights = getattr(self.loss, "rung_weights", ())
        anchors = [label for label in there if label >= least["min_anchor_label"]]
        if weights and anchors and not any(weights[min(label, len(weights)) - 1] for label in anchors):
            problems.append(f"loss.rung_weights: all are 0 for the anchors that there are, of labels {anchors}")
        return problems

    def _grades_apart(self) -> list[str]:
        """Users who want what the test sets call irrelevant, or the other way round."""
        sets = self.held_out.min_grade
        if not isinstance(self.world, JudgedWorldConfig) or self.world.relevant_grade == sets:
            return []
        users = self.world.relevant_grade
        return [f"world.relevant_grade is {users:g} and held_out.min_grade {sets:g}: the least grade of a relevant "
                "document is the same for users and for test sets; give both"]  # fmt: skip

    def folder(self, kind: SharedFolder) -> Path:
        """A folder that all arms of the data set share."""
        return Path(self.workdir) / kind

    def arm_folder(self, kind: ArmFolder) -> Path:
        """A folder of this arm; its records may be another arm's."""
        of = self.input.records_of if kind == "records" and self.input.records_of else self.name
        return self.arm(kind, of)

    def arm(self, kind: ArmFolder, name: str) -> Path:
        """A folder of an arm of the same data set."""
        return Path(self.workdir) / name / kind

    def trained_sources(self) -> tuple[str, ...]:
        """The sources of mining whose documents the arm trains on; recipes with one click a group read clicks alone."""
        match self.negatives:
            case None | NegativesConfig(graded=True):
                read = self.input.sources or self.labels.sources
                return tuple(source for source in self.labels.sources if source in read)
            case _:
                return ("P0",)

    def require_search(self) -> None:
        """Raises InputError unless the arm is a dual encoder: others have stages of their own."""
        if isinstance(self.suggest, GeneratorConfig):
            said = (
                "writes item ids and has no records, vectors or towers of its own: python -m crops_jax.pipeline runs it"
            )
            raise InputError(f"arm {self.name!r}", said)
        if self.suggest is not None:
            said = "belongs to query suggestion: python -m crops_jax.suggest writes its records, and exports it"
            raise InputError(f"arm {self.name!r}", said)

    def ready(self, kind: SharedFolder | ArmFolder) -> Path:
        """The folder of this kind.

        Raises:
          InputError: it is not a complete artefact; the message names the command that makes it.
        """
        folder = self.folder(kind) if kind in get_args(SharedFolder) else self.arm_folder(kind)
        read_manifest(folder, kind, f"python -m crops_jax.{_MADE_BY[kind]}")
        return folder

    def ready_logs(self) -> Path:
        """The log folder.

        Raises:
          InputError: it is not sealed, or no longer what was sealed; the message names what mends it.
        """
        logs = self.ready("logs")
        require_unchanged(logs)
        return logs

    def ready_mined(self) -> tuple[Path, Path]:
        """(logs, what was mined of them), where both are read together: ids of one are looked up in the other.

        Raises:
          InputError: one of them is missing or incomplete, or the logs are not those that were mined.
        """
        logs, mined = self.ready_logs(), self.ready("mined")
        require_made_from(mined, "logs", logs, "python -m crops_jax.mine --config FILE")
        verify(mined, deep=False)
        return logs, mined


def _wrong_name(name: str) -> list[str]:
    """What is wrong with the name of an arm: a folder below workdir, or "." where a workdir has one arm alone."""
    parts = Path(name).parts
    if not name.strip() or ".." in parts or Path(name).is_absolute() or not name.isprintable():
        return [f"name: {name!r} is no folder for an arm, which is one below workdir"]
    shared = RESERVED if parts[1:] else {*RESERVED, BM25_NAME}  # `bench` has arms below BM25's folder
    taken = sorted(shared.intersection(parts[:1]) | {*get_args(ArmFolder)}.intersection(parts[1:]))
    told = ", ".join(taken)
    return [f"name: {name!r} is no folder for an arm: {told} is what all share, or lies in an arm"] if taken else []


def _wrong_values(value: Any, hint: Any, name: str) -> list[str]:
    """Fields below `value` that do not hold what their types say; config files are Python, which checks nothing."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if dataclasses.is_dataclass(value):
        if type(value) in kinds:
            found = (_wrong_values(getattr(value, f), of, f"{name}.{f}".lstrip(".")) for f, of in _hints(type(value)))
            return [problem for problems in found for problem in problems]
    # An id that may be a text may be any whole number: platforms have unsigned ones.
    elif any(_is_a(value, kind) for kind in kinds) or (type(value) is int and {int, str} <= {*kinds}):
        below_zero = name.endswith("seed") and isinstance(value, int) and value < 0
        return [f"{name}: {value} is below zero"] if below_zero else []
    wanted = " or ".join("None" if kind is types.NoneType else str(kind) if typing.get_args(kind) else kind.__name__
                         for kind in kinds)  # fmt: skip
    return [f"{name}: {value!r} is no {wanted}"]


@cache
def _hints(cls: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((f.name, hints[f.name]) for f in dataclasses.fields(cls))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value that is no dataclass is of a kind; no number may be NaN or have more than 64 bits."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind) or kind:
        case typing.Literal:
            return value in inner
        case builtins.tuple:
            kinds = [inner[0]] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
            return isinstance(value, tuple) and len(value) == len(kinds) and not any(
                _wrong_values(each, of, "") for each, of in zip(value, kinds, strict=True))  # fmt: skip
        case builtins.dict:
            return isinstance(value, dict) and all(_is_a(k, inner[0]) and _is_a(v, inner[1]) for k, v in value.items())
        case builtins.float:
            return type(value) in (int, float) and value == value
        case builtins.int:
            return type(value) is int and -(2**63) <= value < 2**63
        case other:
            return isinstance(value, other)


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every field below a dataclass or dict."""
    if dataclasses.is_dataclass(value):
        entries = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, dict) and value:
        entries = list(value.items())
    else:
        return [(prefix, value)]
    return [leaf for name, v in entries for leaf in leaves(v, f"{prefix}.{name}" if prefix else str(name))]


def to_json(value: Any) -> Any:
    """A JSON-able copy; each dataclass carries its type's name so that unions can be read back."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def theta_json(config: ThetaConfig) -> dict[str, Any]:
    """theta's config, and the hash of the local folder that it names: there it may be trained again in place."""
    folder = local_path(config.source)
    own = {"theta_sha256": digest_of_files(folder, THETA_FILES)} if folder.is_dir() else {}
    return own | {"theta": to_json(config)}


# Fields that came after 0.8, whose defaults are what was done before: runs of 0.8 are gone on with.
_LATER = ("mining.funnel", "held_out.require_qr")


def from_json(data: Any, place: str = "config") -> Experiment:
    """The experiment that `to_json` wrote.

    Raises:
      InputError: listing every field that this version does not know or that is missing.
    """
    problems: list[str] = []
    experiment = _rebuild(data, Experiment, "", problems)
    if problems:
        raise InputError(place, problems)
    return experiment


def _rebuild(data: Any, hint: Any, name: str, problems: list[str]) -> Any:
    if isinstance(data, dict) and "type" in data:
        cls = {c.__name__: c for c in dataclasses_in(hint)}.get(data["type"])
        if cls is None:
            problems.append(f"{name or 'experiment'}: no config type {data['type']!r} here")
            return None
        hints = typing.get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        given = set(data) - {"type"}
        problems += [f"{name}.{n}: unknown field".lstrip(".") for n in sorted(given - names)]
        lacking = (f"{name}.{n}".lstrip(".") for n in sorted(names - given))
        problems += [f"{place}: missing" for place in lacking if place not in _LATER]
        parts = {n: _rebuild(data[n], hints[n], f"{name}.{n}".lstrip("."), problems) for n in sorted(given & names)}
        return None if problems else cls(**parts)
    if isinstance(data, list):
        inner = (typing.get_args(hint) or (Any,))[0]
        return tuple(_rebuild(v, inner, name, problems) for v in data)
    return data


def dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that a type hint allows."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [c for arg in typing.get_args(hint) for c in dataclasses_in(arg)]
    return [hint] if dataclasses.is_dataclass(hint) else []


def flat(experiment: Experiment) -> dict[str, Any]:
    """Every field's value by its dotted name."""
    return dict(leaves(json.loads(json.dumps(to_json(experiment)))))


def differences(old: Experiment, new: Experiment, sections: tuple[str, ...], free: tuple[str, ...] = ()) -> list[str]:
    """`section.field: old -> new` for every field below `sections` in which two experiments differ.

    Args:
      free: fields, or whole sections, that are not compared.
    """
    a, b = flat(old), flat(new)
    compared = {
        n for n in {*a, *b} if n.split(".", 1)[0] in sections and not f"{n}.".startswith(tuple(f"{f}." for f in free))
    }
    names = sorted(n for n in compared if a.get(n) != b.get(n))
    return [f"{n}: {a.get(n, 'absent')} -> {b.get(n, 'absent')}" for n in names]
