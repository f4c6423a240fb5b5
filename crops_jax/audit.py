"""`python -m crops_jax.audit --config FILE`: what a judge model says of the documents that a language model wrote.

Draws `audit.documents` of mined/knowledge.parquet, asks the model of `audit.endpoint` for a grade of each (very
relevant, relevant, irrelevant; the paper had people do it, Fig. 6), and shows the grades beside theta's distribution.
Writes the folder `audit`: grades.parquet, audit.json, audit.md and, where matplotlib is installed, audit.svg. With
`simulated_llm` set, a *simulated* judge answers, which knows the simulated world.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.folders import read_json, write_folder, write_json
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment, to_json
from crops_jax.engines.table_rows import take_rows
from crops_jax.errors import InputError, run_command
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import read_table, write_table
from crops_jax.mining import simulated_llm
from crops_jax.mining.config import AuditConfig
from crops_jax.mining.judge import GRADES, Judged, check_audit, judge
from crops_jax.mining.relevance import Relevance, scores_of
from crops_jax.mining.work import theta_cache
from crops_jax.report.audit import audit_table, draw_audit
from crops_jax.stable_hash import hash_texts
from crops_jax.text.tokenizer import document_text

SCHEMA = pa.schema([
    pa.field("query", pa.string(), False), pa.field("item_id", pa.int64(), False), pa.field("grade", pa.string()),
    pa.field("theta", pa.float32(), False),
])  # fmt: skip


def settings(experiment: Experiment) -> dict[str, Any]:
    """What the audit depends on, besides the mined documents."""
    own = {name: to_json(getattr(experiment, name)) for name in ("audit", "theta", "simulated_llm")}
    return own | {"alpha": experiment.mining.threshold.alpha}


def run(experiment: Experiment, relevance: Relevance) -> Path:
    """Draws, asks and writes; returns the audit folder.

    Raises:
      InputError: nothing was mined, there is no written document, or the judge cannot be used (`judge.judge`).
    """
    (_, mined), config = experiment.ready_mined(), experiment.audit
    check_audit(config)
    documents = draw(read_table(mined / "knowledge.parquet"), config)
    if not documents:
        raise InputError(str(mined), "holds no document of a language model: mine with P3 first")
    journal = Path(config.journal or Path(experiment.workdir) / "audit.journal.jsonl")
    with _judge_of(experiment) as asked:
        judged = judge(documents, asked, journal)
    texts = [document_text(*(d[name] for name in TEXT_FIELDS)) for d in documents]  # as mining scores them
    theta = scores_of(relevance, [d["query"] for d in documents], texts)
    facts = summary(judged, theta, asked.endpoint.model, experiment.mining.threshold.alpha)
    target = experiment.folder("audit")
    with write_folder(target, kind="audit", config=settings(experiment), inputs={"mined": mined}) as out:
        columns = {"query": [d["query"] for d in documents], "item_id": [d["item_id"] for d in documents],
                   "grade": judged.grades, "theta": theta}  # fmt: skip
        write_table(SCHEMA, columns, out / "grades.parquet")
        write_json(out / "audit.json", facts)
        table, picture = audit_table(facts), importlib.util.find_spec("matplotlib") is not None  # of the extra `bench`
        shown = ["![The same as a picture](audit.svg)"] if picture else []
        (out / "audit.md").write_text("\n\n".join([f"# {table.title}", table.markdown(), *shown]) + "\n", "utf-8")
        if picture:
            draw_audit(facts, {grade: _of(judged, theta, grade).tolist() for grade in GRADES}, out / "audit.svg")
        out.counts.update(facts)
    return target


def draw(documents: pa.Table, config: AuditConfig) -> list[dict[str, Any]]:
    """A seeded sample of the written documents, in a fixed order; all of them where there are fewer."""
    keys = [f"{q}\n{i}" for q, i in zip(*(documents[n].to_pylist() for n in ("query", "item_id")), strict=True)]
    order = np.argsort(hash_texts(keys, config.seed), kind="stable")[: config.documents] if keys else np.zeros(0, int)
    return take_rows(documents, np.sort(order)).to_pylist()


def summary(judged: Judged, theta: np.ndarray, model: str, alpha: float) -> dict[str, Any]:
    """The figures of the audit.

    Raises:
      InputError: no document got a grade.
    """
    from scipy.stats import binomtest

    graded = sum(grade is not None for grade in judged.grades)
    if not graded:
        raise InputError("audit", f"no document got a grade; rejected: {judged.rejects}")
    grades = {}
    for grade in GRADES:
        of_grade = _of(judged, theta, grade)
        interval = binomtest(len(of_grade), graded).proportion_ci(method="wilson")
        grades[grade] = {
            "documents": len(of_grade), "share": len(of_grade) / graded, "interval": [interval.low, interval.high],
            "theta_median": float(np.median(of_grade)) if len(of_grade) else None,
            "above_alpha": float(np.mean(of_grade > alpha)) if len(of_grade) else None,
        }  # fmt: skip
    return {"judge": model, "asked": len(judged.grades), "graded": graded, "alpha": alpha, "grades": grades,
            "rejects": judged.rejects, "tokens": judged.tokens}  # fmt: skip


def _of(judged: Judged, theta: Sequence[float] | np.ndarray, grade: str) -> np.ndarray:
    return np.asarray(theta)[np.array([found == grade for found in judged.grades], bool)]


@contextmanager
def _judge_of(experiment: Experiment) -> Iterator[AuditConfig]:
    """The config with the endpoint to ask: the configured one, or a simulated judge started here."""
    if experiment.simulated_llm is None:
        yield experiment.audit
        return
    hidden = experiment.folder("logs") / "hidden_items.parquet"
    config, model = experiment.simulated_llm, f"{simulated_llm.MODEL}-judge"
    with simulated_llm.stand_in(
        hidden, config, experiment.audit.endpoint, "judge", model, fingerprint(hidden)
    ) as endpoint:
        yield replace(experiment.audit, endpoint=endpoint)


def main() -> None:
    """Audits for the experiment of the command line."""
    from crops_jax.models import theta  # jax, which only theta needs

    experiment = from_command_line("audit")
    target = run(experiment, theta.load(experiment.theta, theta_cache(Path(experiment.workdir))))
    facts = read_json(target / "audit.json")
    table = audit_table(facts)
    print(f"{table.title}\n{table.text()}")
    if facts["rejects"]:
        print("without a grade: " + ", ".join(f"{reason} {n}" for reason, n in facts["rejects"].items()))
    print(f"wrote {target}")


if __name__ == "__main__":
    run_command(main)
