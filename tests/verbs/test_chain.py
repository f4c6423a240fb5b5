"""The chain of a platform's own days: a log of three days, one more day, and the optimiser of the day before."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, item, write
from shop import command, experiment, items, words_for_theta, write_logs

from crops_jax import chain, check_logs
from crops_jax.artifacts.manifest import fingerprint, verify
from crops_jax.errors import InputError
from crops_jax.evaluate import read_results
from crops_jax.logs.folder import open_logs
from crops_jax.logs.window import ensure_window
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.training.metric_writers import read_metrics

pytestmark = pytest.mark.slow  # five trainings in small
DAYS = ("2025-06-14", "2025-06-15", "2025-06-16", "2025-06-17")


def once_more(logs, day, new, days):
    """A day again, so many days later, under other requests."""

    def moved(column):
        return pa.array([ts + days * DAY for ts in column.to_pylist()])

    def renamed(column):
        return pa.array([f"{new} {request}" for request in column.to_pylist()])

    changes = {"searches": {"ts": moved, "request_id": renamed}, "candidates": {"request_id": renamed}}
    (logs / new).mkdir()
    for table in ("searches", "candidates", "feed"):
        read = pq.read_table(logs / day / f"{table}.parquet")
        for name, change in changes.get(table, {"ts": moved}).items():
            read = read.set_column(read.column_names.index(name), name, change(read[name]))
        pq.write_table(read, logs / new / f"{table}.parquet")


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """An experiment after the chain of three days."""
    e = experiment(tmp_path_factory.mktemp("chain"))
    e = replace(e, evaluate=replace(e.evaluate, scann=False), train=replace(e.train, steps=3, save_every=3),
                validation=replace(e.validation, every=0, select="last"))  # fmt: skip
    logs = write_logs(e.folder("logs"))
    (logs / "train").rename(logs / DAYS[0])
    (logs / "test").rename(logs / DAYS[2])
    once_more(logs, DAYS[0], DAYS[1], 1)
    check_logs.run(logs)
    with words_for_theta():
        command(chain, e)
        yield e


def made(e, day, kind="", name="arm"):
    return e.folder("logs").parent / "chain" / day / name / kind


def run_of(e, day, name="arm"):
    return json.loads((made(e, day, "train", name) / "run.json").read_text())["config"]


def everything(e, *days):
    """What was made of these days."""
    return {path: fingerprint(path.parent) for day in days for path in made(e, day).parent.rglob("manifest.json")}


def test_each_day_is_trained_on_from_the_day_before_and_measured_on_the_next(chained):
    first, second = (run_of(chained, day) for day in DAYS[:2])
    assert (first["model"]["init_from"], second["model"]["init_from"]) == (None, str(made(chained, DAYS[0], "train")))
    tokenizer = made(chained, DAYS[0], name="tokenizer") / "tokenizer.json"
    assert first["text"]["tokenizer"] == second["text"]["tokenizer"] == str(tokenizer)
    asked = pq.read_table(made(chained, DAYS[0], name="testsets") / "ct.parquet")["event_id"].to_pylist()
    assert len(asked) > 5 and all(event.startswith(DAYS[1]) for event in asked)
    report = json.loads((chained.folder("logs").parent / "chain/arm.report/results.json").read_text())
    assert report == [read_results(made(chained, day, "eval")) for day in DAYS[:2]]
    assert [row["arm"] for row in report] == [f"An arm, {day}" for day in DAYS[:2]]
    exported = [made(chained, day, "export").exists() for day in DAYS[:2]]
    assert exported == [False, True] and not made(chained, DAYS[2]).parent.exists()


def test_one_more_day_is_the_work_of_one_day(chained, capsys):
    logs, before = chained.folder("logs"), everything(chained, *DAYS[:2])
    once_more(logs, DAYS[0], DAYS[3], 3)
    write(logs / "items.parquet", "items", [*items(), item(28, "new")])
    check_logs.run(logs)
    command(chain, chained)
    assert {path: everything(chained, *DAYS[:2])[path] for path in before} == before
    assert capsys.readouterr().err.count(": train\n") == 1
    assert run_of(chained, DAYS[2])["model"]["init_from"] == str(made(chained, DAYS[1], "train"))


def test_the_optimiser_of_the_day_before_is_taken_over_where_it_is_asked_for(chained):
    command(chain, chained, "--name=kept", "--last", DAYS[2], "--keep-optimiser")
    before = made(chained, DAYS[0], "train", "kept") / "checkpoints/3"
    assert run_of(chained, DAYS[1], "kept")["model"]["init_from"] == str(before)
    anew, kept = (read_metrics(made(chained, DAYS[1], "train", name) / "metrics.jsonl") for name in ("arm", "kept"))
    assert anew[0]["update_norm"] == kept[0]["update_norm"] == 0, "the warm-up begins anew"
    assert [line["loss"] for line in anew[:2]] == [line["loss"] for line in kept[:2]], "the same weights and batches"
    assert anew[1]["update_norm"] != kept[1]["update_norm"]


def test_a_day_whose_yesterday_was_trained_again_is_trained_again(chained, capsys):
    chain.run(chained, list(DAYS[:3]))
    assert ": train\n" not in capsys.readouterr().err
    shutil.rmtree(made(chained, DAYS[0], "train"))
    chain.run(chained, list(DAYS[:3]))
    assert capsys.readouterr().err.count(": train\n") == 2


def test_a_window_holds_two_days_under_the_names_that_verbs_know(chained, tmp_path):
    logs, window = chained.folder("logs"), tmp_path / "window"
    ensure_window(logs, window, {DAYS[1]: "train", DAYS[2]: "test"})
    assert open_logs(window).days() == ["test", "train"] and verify(window)["kind"] == "logs"
    for day, name in ((DAYS[1], "train"), (DAYS[2], "test")):
        assert (window / name / "feed.parquet").read_bytes() == (logs / day / "feed.parquet").read_bytes()
    assert (window / "judgments.parquet").exists() and not (window / DAYS[0]).exists()


@pytest.mark.parametrize(("flags", "said"), [
    (("--first", "2025-01-01"), f"holds no day 2025-01-01; it has {DAYS[0]}"),
    (("--last", DAYS[0]), f"a later one to evaluate on, and {DAYS[0]} does not come after the first day"),
    (("--first", DAYS[2], "--last", DAYS[1]), f"{DAYS[1]} does not come after {DAYS[2]}; it has {DAYS[0]}, "),
])  # fmt: skip
def test_days_that_are_not_there(chained, flags, said):
    with pytest.raises(InputError, match=said):
        command(chain, chained, *flags)


def test_simulated_days_are_the_loops(chained):
    with pytest.raises(InputError, match=r"python -m crops_jax\.loop"):
        chain.days_of(replace(chained, world=SyntheticWorldConfig()))


def test_days_that_are_done_may_leave_the_log(chained, capsys):
    logs = chained.folder("logs")
    command(chain, chained, "--first", DAYS[0])
    before = everything(chained, *DAYS[:3])
    shutil.rmtree(logs / DAYS[0])
    check_logs.run(logs)
    capsys.readouterr()
    command(chain, chained)  # the day that began from it is kept
    assert ": train\n" not in capsys.readouterr().err and everything(chained, *DAYS[:3]) == before
    once_more(logs, DAYS[1], "2025-06-18", 3)
    for day in DAYS[1:3]:
        shutil.rmtree(logs / day)
    check_logs.run(logs)
    command(chain, chained)
    said = capsys.readouterr().err
    assert said.count(": train\n") == 1 and f"{DAYS[3]}: goes on from {DAYS[2]}, which has left the log" in said
    run = run_of(chained, DAYS[3])
    assert run["model"]["init_from"] == str(made(chained, DAYS[2], "train"))
    assert run["text"]["tokenizer"] == run_of(chained, DAYS[0])["text"]["tokenizer"]
