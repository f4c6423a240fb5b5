"""Model card and data card in the hub's form: YAML for programs, then Markdown for people, from what manifests say.

Loads no jax: mining writes its card on hosts that have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from crops_jax import __version__
from crops_jax.labels import SOURCES
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import LIST_FIELDS
from crops_jax.logs.times import days_told
from crops_jax.report.tables import compact_table
from crops_jax.retrieval.compact import holds

CARD = "README.md"  # where the hub looks for it


@dataclass(frozen=True)
class Measured:
    """One figure of the test day."""

    name: str
    value: float
    low: float
    """Lower end of its 95 % interval over queries; NaN where nothing says how sure it is."""
    high: float
    queries: int


@dataclass(frozen=True)
class ModelFacts:
    """What a model card tells."""

    title: str
    day: str | None
    """Of the train logs; none where they were not there when the model was exported, as with the counts below."""
    simulated: bool
    architecture: str
    width: int
    query_tokens: int
    document_tokens: int
    fields: Sequence[str]
    started_from: str
    loss: str
    steps: int
    seed: int
    sources: Mapping[str, int]
    """Letter -> label, of the sources that the method trains on."""
    mined: Mapping[str, int]
    """Letter -> documents mined."""
    groups: int | None
    documents: int | None
    widths: Sequence[int]
    """Shorter vectors that were trained (Matryoshka)."""
    compact: Mapping[str, Any] | None
    """`retrieval.compact.compare_forms` of the run, where it was evaluated."""
    measured: Sequence[Measured]
    seeds: int
    """Training runs behind the figures."""
    hashes: Mapping[str, str]
    """What it was made from: name -> sha256 of the folder's manifest."""


def train_day(logs: Path) -> str:
    """The day of the train logs, as UTC writes it.

    Raises:
      InputError: the table of searches is missing or damaged.
    """
    times = pc.min_max(open_logs(logs).read("searches", "train", ["ts"])["ts"]).as_py()
    return days_told(times["min"], times["max"])


def model_card(facts: ModelFacts) -> str:
    """README.md of an exported model."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(task_type="text-retrieval", dataset_type="crops-jax", dataset_name="test day", metric_type=m.name,
                   metric_value=round(m.value, 4))
        for m in facts.measured
    ]  # fmt: skip
    about = ModelCardData(
        library_name="sentence-transformers", pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "dense-retrieval", "crops-jax"],
        model_name=facts.title, eval_results=results or None,
    )  # fmt: skip
    cut = f"queries after {facts.query_tokens} tokens, documents after {facts.document_tokens}"
    parts = [
        f"# {facts.title}",
        f"Two towers for search: a query and a document become unit vectors of {facts.width} numbers, and their "
        f"product is the cosine that ranks documents. {facts.architecture}. Trained by crops_jax {__version__}.",
        "## How to load it",
        _LOADING,
        f"A document is one text: {_document(facts.fields)} `item` in document_tower/golden.json is an example. "
        f"Texts are cut: {cut}.",
        "## What it was trained on",
        f"{'**Simulated** logs' if facts.simulated else 'Logs'} of {facts.day or 'a day that is not at hand'}"
        + (f"; {facts.groups} searches with {facts.documents} graded documents" if facts.groups else "")
        + f". {facts.steps} steps from {facts.started_from}, seed {facts.seed}. Loss: {facts.loss}.",
        _sources(facts.sources, facts.mined),
        "## How well it finds",
        _measured(facts),
        *_smaller(facts),
        "## Limits",
        _limits(facts),
        "## Made from",
        "\n".join(f"- {name}: `{sha256}`" for name, sha256 in facts.hashes.items()),
    ]
    return _card(about.to_yaml(), parts)


def data_card(counts: Mapping[str, Any], config: Mapping[str, Any], sha256: str) -> str:
    """README.md of mined candidates.

    Args:
      counts: those of mining (`mining.train_day.mine`).
      config: the settings of mining, as the manifest has them.
      sha256: of the manifest of the logs that they were mined from.
    """
    from huggingface_hub import DatasetCardData

    rows = counts["candidates"]
    about = DatasetCardData(
        task_categories=["text-retrieval"], pretty_name="Mined candidates", tags=["crops-jax", "search-logs"],
        size_categories=[_size(rows)],
        configs=[
            {"config_name": name, "data_files": files}
            for name, files in (("candidates", "candidates.parquet/*.parquet"), ("knowledge", "knowledge.parquet"))
        ],
    )  # fmt: skip
    alpha = config["mining"]["threshold"]["alpha"]
    parts = [
        "# Mined candidates",
        f"Which documents belong under which query, and why: {rows} rows from the logs of {counts['day']}, mined by "
        f"crops_jax {__version__}. `candidates.parquet` has a row for each reason, `knowledge.parquet` the documents "
        "that a language model wrote, `rejects.json` what was left out, by reason.",
        "## Sources",
        _sources({s.letter: s.label for s in SOURCES if s.letter in counts}, counts),
        "Labels are those of the paper's Table 1; a training run may give others. "
        f"P1 and P2 are pairs whose relevance by the discriminator is above {alpha}.",
        "## The language model",
        _asked(counts, config),
        "## Read from",
        "\n".join(f"- {name}: {count} rows" for name, count in counts["log_rows"].items())
        + f"\n- the log folder's manifest: `{sha256}`",
        "## Limits",
        "The rows hold what users typed, and numbers of users and requests: keep them where the logs may be kept. They "
        "are one day of one platform; what its search never ranked and no user met in the feed is in none of them.",
    ]
    return _card(about.to_yaml(), parts)


def _asked(counts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What a language model was asked, and what it wrote."""
    words = config["mining"]["world_knowledge"]
    if not words["enabled"]:
        return "None was asked."
    model = words["endpoint"]["model"] if config.get("simulated_llm") is None else "a **simulated** model"
    return (
        f"{counts.get('P3_asked', 0)} questions to {model}, {counts.get('P3', 0)} documents. Each was written from one "
        "clicked document of the query. They are for training and are never shown or indexed."
    )


_LOADING = """```python
from sentence_transformers import SentenceTransformer

queries, documents = SentenceTransformer("query_tower"), SentenceTransformer("document_tower")
cosine = queries.encode(["how to wire a transformer"]) @ documents.encode(["a document's text"]).T
```

`golden.json` in each tower has texts and the vectors that any server has to give for them."""


def _document(fields: Sequence[str]) -> str:
    """How fields become the text of a document (`text.tokenizer.document_text`)."""
    lists = " and ".join(f"`{name}`" for name in fields if name in LIST_FIELDS)
    spaced = f" In {lists} every `|` becomes a space." if lists else ""
    named = ", ".join(f"`{name}`" for name in fields)
    told = "in this order, each on a line of its own, without blanks around it; those without text are left out."
    return f"{named}, {told}{spaced}"


def _card(yaml: str, parts: Sequence[str]) -> str:
    return f"---\n{yaml}\n---\n\n" + "\n\n".join(parts) + "\n"


def _sources(labels: Mapping[str, int], mined: Mapping[str, int]) -> str:
    rows = [
        f"| {s.letter} | {s.meaning} | {labels[s.letter]} | {mined.get(s.letter, '')} |"
        for s in SOURCES
        if s.letter in labels
    ]
    return "\n".join(["| source | documents | label | mined |", "|---|---|---|---|", *rows])


def _measured(facts: ModelFacts) -> str:
    if not facts.measured:
        return "Not measured: `python -m crops_jax.evaluate` was not run for this model before it was exported."
    rows = [f"| {m.name} | {m.value:.4f} | {_interval(m)} | {m.queries} |" for m in facts.measured]
    runs = "one training run" if facts.seeds == 1 else f"the mean of {facts.seeds} training runs with other seeds"
    told = f"On the test day, by exact search, {runs}; intervals of 95 % over queries."
    return "\n".join([told, "", "| metric | value | interval | queries |", "|---|---|---|---|", *rows])


def _smaller(facts: ModelFacts) -> list[str]:
    """Which widths hold, as far as it was measured."""
    if not facts.widths and facts.compact is None:
        return []
    trained = (
        f"Trained to be cut to {', '.join(map(str, facts.widths))} numbers."
        if facts.widths
        else "Not trained to be cut."
    )
    if facts.compact is None:
        return ["## Smaller vectors", f"{trained} What that costs was not measured."]
    kept = ", ".join(map(str, holds(facts.compact)))
    told = f"{trained} Of the trained widths these keep 99 % of the whole vector's recall: {kept}."
    return ["## Smaller vectors", told, compact_table({"arm": facts.title, "compact": facts.compact}).markdown()]


def _interval(found: Measured) -> str:
    return "" if found.low != found.low else f"{found.low:.4f} to {found.high:.4f}"


def _limits(facts: ModelFacts) -> str:
    day = f", {facts.day}" if facts.day else ""
    said = [
        f"It has learnt from one day{day}. What came up later is found only as far as its words are known.",
        "Clicks follow what was shown. Sources beyond the search log (P1, P2, P3) weaken that; nothing removes it.",
        "Relevance was measured by clicks (CT) and by what was consumed after a rewording (QR); NDCG is by judgments.",
    ]
    if facts.simulated:
        said.insert(0, "Users, logs and language model are simulated: it is good for no real search.")
    return "\n".join(f"- {line}" for line in said)


def _size(rows: int) -> str:
    """The hub's words for a number of rows."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    if rows < 1000:
        return "n<1K"
    power = min(len(str(rows)) - 4, len(steps) - 2)
    return f"{steps[power]}<n<{steps[power + 1]}"
