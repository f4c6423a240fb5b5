"""Rates worked by hand from a clock that stands still, and every place where metrics go read back."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import words
from tensorboardX.proto.event_pb2 import Event, SessionLog

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.command_line import from_command_line
from crops_jax.cost.chips import Chip
from crops_jax.errors import InputError
from crops_jax.models.config import BertConfig, DualEncoderConfig, SparseMlpConfig
from crops_jax.parallel import processes
from crops_jax.records.tfrecord import TFRecordReader, build_index
from crops_jax.text.tokenizer import Tokenizer
from crops_jax.training import throughput
from crops_jax.training.config import MonitorConfig
from crops_jax.training.dual_encoder import count
from crops_jax.training.hints import Hints
from crops_jax.training.metric_writers import EventFiles, JsonLines, WandbRun, read_metrics
from crops_jax.training.monitor import Monitor, require_installed
from crops_jax.training.throughput import Meter

# Two queries of 2 tokens, three documents of 4 and an empty slot.
QUERY, DOCS = np.array([2, 2], np.int32), np.array([4, 4, 4, 0], np.int32)
PADDED = Batch(
    query=Tokens(np.zeros((2, 4), np.int32), QUERY),
    docs=Tokens(np.zeros((4, 5), np.int32), DOCS),
    query_key=words([0, 1]),
    doc_key=words([0, 1, 2, -1]),
    label=np.array([5, 4, 2, 0]),
    valid=np.array([True, True, True, False]),
    source=np.ones(4, np.int32),
)


def packed_rows(lengths, rows, slots):
    tokens = np.zeros((1, rows, slots), np.int32)
    return PackedTokens(tokens, tokens, tokens, np.zeros((1, len(lengths)), np.int32), lengths[None])


PACKED = replace(PADDED, query=packed_rows(QUERY, 1, 5), docs=packed_rows(DOCS, 2, 6))
HASHED = replace(
    PADDED,
    query=IdFeatures(np.zeros((2, 3)), np.zeros((2, 1, 4))),
    docs=IdFeatures(np.zeros((4, 3)), np.zeros((4, 1, 4))),
)
MODEL = DualEncoderConfig(backbone=BertConfig(width=4, layers=1, heads=2, ffn=8), pooling="mean", dtype="bfloat16")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands where its `now` is put."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(throughput, "monotonic", lambda: clock.now)
    return clock


def meter_of(model=MODEL, of_run=1):
    return Meter(partial(count, model), of_run, model.dtype, jax.devices())


def hints_of(packing=None, featurizer=None, tokenised=False):
    return Hints(InputConfig(batch_queries=2, docs_per_query=2, shards=1, packing=packing), featurizer, tokenised)


def rates(meter, clock, batch, steps=2, seconds=10.0, waited_s=1.0):
    for _ in range(steps):
        meter.count(batch)
    clock.now += seconds
    return meter.take(waited_s)[1]


@pytest.mark.parametrize(("batch", "padding"), [(PADDED, 12 / 28), (PACKED, 1 / 17)], ids=["padded", "packed"])
def test_rates_by_hand(clock, batch, padding):
    told = rates(meter_of(), clock, batch)
    assert told == pytest.approx({
        "step_s": 5.0, "tokens_per_s": 2 * 16 / 10, "tokens_per_s_per_device": 2 * 16 / 10 / 8,
        "queries_per_s": 0.4, "pairs_per_s": 0.6, "padding_share": padding, "data_wait_share": 0.1,
    })  # fmt: skip


def test_a_process_that_feeds_one_shard_of_four_speaks_for_all(clock):
    one = rates(meter_of(), clock, PADDED)
    of_four = rates(meter_of(of_run=4), clock, PADDED)
    times = {name: of_four[name] / one[name] for name in one}
    assert times == {name: 4 if "_per_s" in name else 1 for name in one}


def test_mfu_by_hand(clock, monkeypatch):
    monkeypatch.setattr(
        throughput, "chip_of", lambda kind: Chip("toy", (kind,), bf16_flops=1000, hbm_bytes=0, hbm_rate=1)
    )
    # 128 weights multiply a token; attention costs 4 * width for every token of its text, however it is packed.
    query, docs, logits = 4 * (2 * 128 + 16 * 2), 12 * (2 * 128 + 16 * 4), 2 * 2 * 3 * 4
    mfu = 2 * 3 * (query + docs + logits) / (10 * 8 * 1000)
    for batch in (PADDED, PACKED):
        assert rates(meter_of(), clock, batch)["mfu"] == pytest.approx(mfu)
    in_float32 = meter_of(replace(MODEL, dtype="float32"))
    assert "mfu" not in rates(in_float32, clock, PADDED)  # its peak is not known


def test_hashed_ids_have_no_tokens_and_a_cpu_no_peak(clock):
    model = DualEncoderConfig(backbone=SparseMlpConfig(), dtype="bfloat16")
    told = rates(meter_of(model), clock, HASHED)
    assert told == pytest.approx({"step_s": 5.0, "queries_per_s": 0.4, "pairs_per_s": 0.6, "data_wait_share": 0.1})


def test_time_aside_is_told_once_and_slows_no_rate(clock):
    meter = meter_of()
    for _ in range(2):
        with meter.timed_apart("checkpoint"):
            clock.now += 3
    told = rates(meter, clock, PADDED)
    assert told["checkpoint_s"] == 6 and told["step_s"] == 5
    assert "checkpoint_s" not in rates(meter, clock, PADDED)


def test_waiting_for_data_is_told_of_the_time_since_the_last_line(clock):
    meter = meter_of()
    told = [rates(meter, clock, PADDED, waited_s=so_far)["data_wait_share"] for so_far in (1.0, 4.0, 4.0)]
    assert told == pytest.approx([0.1, 0.3, 0.0])


def test_memory_is_that_of_the_fullest_device_that_tells(monkeypatch):
    told = [{"bytes_in_use": 5, "peak_bytes_in_use": 30}, {"bytes_in_use": 7, "peak_bytes_in_use": 20}, {}, None]
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in told]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = throughput.memory()
    assert (found["device_bytes"], found["device_peak_bytes"]) == (7, 30)
    monkeypatch.setattr(jax, "local_devices", lambda: devices[2:])
    assert set(throughput.memory()) <= {"host_bytes"}


def test_the_padding_hint_names_rows_that_fit_and_is_given_once(clock):
    packing = PackingConfig(doc_row_tokens=6, doc_rows=32, query_row_tokens=5, query_rows=4)
    meter, hints = meter_of(), hints_of(packing)
    said = []
    for _ in range(2):
        meter.count(replace(PACKED, docs=packed_rows(DOCS, 32, 6), query=packed_rows(QUERY, 4, 5)))
        clock.now += 1
        said += hints.after_line(meter.take(0.0)[0])
    # 12 document tokens fill 2 rows of 6, 4 query tokens one of 5; with room to spare 3 and 1.
    assert said == [
        "92% of the token slots are padding; a batch has 2.0 groups of 2.0 query and 6.0 document tokens. For the next "
        "run: --input.packing.query_rows=1 (now 4) --input.packing.doc_rows=3 (now 32)"
    ]
    assert not list(hints_of().after_line(throughput.Counts(seconds=1, steps=1, slots=10)))  # padded by choice


def test_waiting_for_data_is_a_hint_after_three_lines_in_a_row():
    def said(waits, **made_of):
        hints = hints_of(**made_of)
        return [bool(list(hints.after_line(throughput.Counts(seconds=1, waited_s=w, steps=1)))) for w in waits]

    tokenizer = object.__new__(Tokenizer)
    assert said([0.03, 0.03, 0.01, *[0.03] * 6], featurizer=tokenizer) == [*[False] * 5, True, *[False] * 3]
    assert not any(said([0.5] * 5, featurizer=tokenizer, tokenised=True))  # the shards are tokenised


def test_json_lines_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 10, "count": 7, "cosine": float("nan")})
    log.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')  # a kill
    log = JsonLines(path, resume_at=2)
    log.write(3, {"loss": 0.5})
    log.close()
    assert read_metrics(path)[1:] == [{"step": 2, "loss": 0.2, "count": 7, "cosine": None}, {"step": 3, "loss": 0.5}]


def events(path):
    """Every event of a TensorBoard file, its checksums checked."""
    build_index(path)
    reader = TFRecordReader(path)
    return [Event.FromString(reader.read(i)) for i in range(len(reader))]


@pytest.mark.parametrize("damage", [b"5", b"null", b'{"loss": 3}', b'{"step": "2"}', b"\xff\xfe", b"[1]"])
def test_lines_that_are_no_record_are_left_out_and_more_than_the_last_is_told(damage, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3.0}\n' + damage)
    JsonLines(path, resume_at=9).close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}] and not capsys.readouterr().err
    path.write_bytes(damage + b'\n{"step": 1, "loss": 3.0}\n')
    JsonLines(path, resume_at=9).close()
    assert read_metrics(path) == []
    assert "line 1 is no record of a step; the 2 lines from there on are left out" in capsys.readouterr().err


def test_event_files_hold_what_was_told_and_hide_what_a_resume_repeats(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3,))):
        files = EventFiles(tmp_path, start)
        for step in steps:
            files.write(step, {"loss": step / 4, "mfu": 0.5})
        files.close()
    first, second = (events(path) for path in sorted(tmp_path.glob("events.*")))
    assert first[0].file_version == "brain.Event:2"
    told = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in first[2:]]
    assert told == [(step, {"loss": step / 4, "mfu": 0.5}) for step in (1, 2, 3)]
    assert second[1].session_log.status == SessionLog.START and second[1].step == 3 == second[2].step


class FakeWandb(SimpleNamespace):
    """What `WandbRun` asks of the package, noting what it is told."""

    def __init__(self):
        super().__init__(said=[])

    def init(self, **how):
        self.said.append(how)
        return SimpleNamespace(
            id=how["id"] or "run7",
            define_metric=lambda name, step_metric: self.said.append((name, step_metric)),
            log=self.said.append,
            finish=lambda exit_code: self.said.append(exit_code),
        )


def test_a_resumed_wandb_run_is_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for failed in (True, False):
        run = WandbRun("search", "crops", tmp_path, {"seed": 0})
        run.write(5, {"loss": 0.5})
        run.close(failed)
    asked = {"project": "search", "name": "crops", "config": {"seed": 0}, "resume": "allow"}
    said = [("*", "step"), {"step": 5, "loss": 0.5}]
    assert fake.said == [{**asked, "id": None}, *said, 1, {**asked, "id": "run7"}, *said, 0]


def test_a_missing_wandb_is_named_before_training(monkeypatch):
    require_installed(MonitorConfig())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        require_installed(MonitorConfig(wandb_project="search"))


def watched(folder, steps, dies_after=None, **config):
    """A run of trivial steps below a monitor."""
    meter, hints = meter_of(), hints_of()
    double = jax.jit(lambda x: 2 * x)
    with Monitor(
        MonitorConfig(**config), folder, steps, meter, hints.after_line, lambda n: 0.1 * n, {"name": "toy"}
    ) as monitor:
        for done in range(steps.start + 1, steps.stop + 1):
            loss = double(jnp.float32(done))
            monitor.step(done, PADDED, loss)
            monitor.report(done, {"loss": loss, "tau": jnp.float32(0.05), "count_label_5": jnp.int32(1)}, 0.0)
            if done == dies_after:
                raise KeyboardInterrupt


def test_a_watched_run_writes_lines_events_and_a_trace(tmp_path, capsys):
    watched(tmp_path, range(3, 7), profile_steps=2, profile_at=10)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in lines] == [(4, 8.0), (5, 10.0), (6, 12.0), (7, 14.0)]
    assert [r["learning_rate"] for r in lines] == pytest.approx([0.3, 0.4, 0.5, 0.6])  # of the updates done before
    assert lines[0]["count_label_5"] == 1 and lines[0]["host_bytes"] > 1e7
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert {v.tag for e in events(file) for v in e.summary.value} == {*lines[0], *lines[3]} - {"step"}
    trace = next((tmp_path / "profile").rglob("*.xplane.pb"))
    assert trace.stat().st_size > 0
    assert f"trace of steps 6 to 7: tensorboard --logdir {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(("at", "length", "told"), [(1, 2, "5 to 6"), (10, 2, "6 to 7"), (10, 9, "4 to 7")])
def test_a_trace_has_its_length_and_ends_with_the_run_at_the_latest(at, length, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    watched(tmp_path, range(3, 7), profile_steps=length, profile_at=at)
    assert f"trace of steps {told}: " in capsys.readouterr().err


def test_a_watched_run_with_a_wandb_project_is_sent_there_under_its_name(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    watched(tmp_path, range(2), wandb_project="search")
    begun, _, *lines, ended = fake.said
    assert (begun["project"], begun["name"], begun["config"]) == ("search", "toy", {"name": "toy"}) and ended == 0
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 2.0), (2, 4.0)]


def test_an_error_ends_the_trace_and_marks_the_run_as_failed(tmp_path, monkeypatch):
    fake, traced = FakeWandb(), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: traced.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    with pytest.raises(KeyboardInterrupt):
        watched(tmp_path, range(6), dies_after=2, wandb_project="search", profile_steps=3, profile_at=1)
    assert traced == ["start", "stop"] and fake.said[-1] == 1


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    watched(tmp_path, range(2), profile_steps=1, profile_at=1)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_profile_and_tokenize_are_flags_of_their_own():
    assert from_command_line("write_records", ["--config=configs/demo.py", "--tokenize"]).records.tokenize
    arguments = ["--config", "configs/demo.py", "--profile", "--train.steps=5"]
    assert from_command_line("train", arguments).monitor == MonitorConfig(profile_steps=3)
