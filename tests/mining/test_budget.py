"""P3's money: budgets, the dry run, what is dropped as a near copy, prompts in files."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_endpoint import FakeEndpoint, completion
from hand_logs import small_world
from knowledge import EXEMPLAR, GOOD, mined, written

from crops_jax import check_logs, mine
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.mining.budget import Ledger, spent_file
from crops_jax.mining.config import MiningConfig, WorldKnowledgeConfig
from crops_jax.mining.near_duplicates import shingles, similarity
from crops_jax.mining.prompt import Written, messages, one_shot, read_answer
from crops_jax.mining.world_knowledge import check_config


def test_a_ledger_puts_the_longest_answer_aside_and_gives_back_what_was_not_used():
    ledger = Ledger(max_requests=3, max_tokens=30, longest_answer=10)
    first = ledger.take(20)  # 5 tokens of prompt, 10 aside
    assert first == 15 and ledger.take(20) == 15
    ledger.close(first, "status 200", 7)
    ledger.close(15, "timeout", None)
    assert ledger.take(20) is None and ledger.spent  # 7 + 15 + 15 > 30
    assert ledger.take(1) is None  # once it has refused, it refuses: the questions behind are as long
    assert ledger.facts() == {"requests": {"status 200": 1, "timeout": 1}, "tokens": 7,
                              "tokens of requests without an answer, at most": 15}  # fmt: skip
    most = Ledger(max_requests=2, max_tokens=0, longest_answer=10)
    assert [most.take(4) for _ in range(3)] == [11, 11, None]


def test_what_is_put_aside_for_others_is_waited_for():
    """A budget of 100,000 with answers of up to 30,000 is not spent by three short ones."""
    ledger, taken = Ledger(0, 100_000, 30_000), []
    for _ in range(3):
        taken.append(ledger.take(40))

    def fourth():
        taken.append(ledger.take(40))

    waiting = threading.Thread(target=fourth)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and len(taken) == 3
    ledger.close(taken[0], "status 200", 150)
    waiting.join(10)
    assert taken[3] == 30_010 and ledger.under_way == 3
    ended = threading.Thread(target=fourth)
    ended.start()
    ledger.end()
    ended.join(10)
    assert taken[4] is None and ledger.spent


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_what_a_killed_run_sent_is_kept_and_nothing_more_is_sent(tmp_path, stop):
    free = threading.Event()

    def later(n):
        free.wait(0.2 if n < 4 else 60)
        return (200, completion(written(n))) if n < 4 else (500, {})

    with FakeEndpoint(later) as endpoint:
        config = endpoint.config(concurrency=2, retries=5)
        code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from crops_jax.errors import run_command
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.journal import Journal
from crops_jax.mining.config import EndpointConfig
config = {config!r}
prompts = [asked([{{"role": "user", "content": f"q{{i}}"}}], config) for i in range(20)]
with Journal({str(tmp_path / "j.jsonl")!r}) as journal:
    run_command(lambda: ask_all(prompts, config, journal, lambda prompt, answer: True))
"""
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while len(endpoint.requests) < 6:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(stop)
        told = ""
        while stop != signal.SIGKILL and "under way" not in told:
            told += (line := process.stderr.readline())
            assert line, told
        free.set()
        told += process.communicate(timeout=60)[1]
        assert len(endpoint.requests) == 6, "no question and no retry after the signal"
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9, signal.SIGINT: 130}[stop]
    last = json.loads(spent_file(tmp_path / "j.jsonl").read_text().splitlines()[-1])
    if stop == signal.SIGKILL:  # its last seconds are missing
        assert 1 <= sum(last["requests"].values()) <= 6
    else:
        assert last["requests"] == {"status 200": 4, "status 500": 2}
        assert "requests under way: 2, for some 120 s at most; what they answer is kept" in told


@pytest.mark.parametrize(("retries", "asked"), [(0, 4), (1, 4)])
def test_a_budget_of_requests_counts_retries_and_the_next_run_goes_on(tmp_path, capsys, retries, asked):
    with FakeEndpoint(lambda n: (500, {}) if n == 1 else (200, completion(written(n)))) as endpoint:
        counts, rejects = mined(tmp_path, endpoint.config(retries=retries), max_requests=4)
        assert len(endpoint.requests) == asked
        assert rejects == {"budget_spent": 2 + retries} | ({} if retries else {"endpoint_error": 1})
        assert counts["P3"] == 3
        told = capsys.readouterr().err
        assert (
            "m: 4 requests (3 status 200, 1 status 500), 39 tokens" in told and "raise mining.world_knowledge" in told
        )
        counts, rejects = mined(tmp_path, endpoint.config(retries=retries), max_requests=4)
        assert (counts["P3"], rejects, len(endpoint.requests)) == (6, {}, asked + 3)
    lines = map(json.loads, (tmp_path / "knowledge.journal.spent.jsonl").read_text().splitlines())
    spent = {line["run"]: line["requests"] for line in lines}  # of a run the last line counts
    assert [sum(requests.values()) for requests in spent.values()] == [4, 3]


def test_a_budget_of_tokens_is_never_passed(tmp_path):
    usage = {"prompt_tokens": 300, "completion_tokens": 100}
    with FakeEndpoint(lambda n: (200, completion(written(n), usage=usage))) as endpoint:
        config = endpoint.config(concurrency=4, max_tokens=100)
        _, rejects = mined(tmp_path, config, max_total_tokens=2000)
        assert 2 <= len(endpoint.requests) <= 5 and rejects == {"budget_spent": 6 - len(endpoint.requests)}


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(tmp_path, monkeypatch, capsys):
    logs = small_world(tmp_path / "logs")
    check_logs.run(logs)
    with FakeEndpoint(lambda n: (200, completion(written(n)))) as endpoint:
        knowledge = WorldKnowledgeConfig(endpoint=endpoint.config(retries=2), per_query=3, max_requests=7)
        experiment = Experiment(workdir=str(tmp_path), world=None, mining=MiningConfig(world_knowledge=knowledge))
        monkeypatch.setattr(mine, "from_command_line", lambda verb, argv: experiment)
        monkeypatch.setattr("sys.argv", ["mine", "--config", "x", "--dry-run"])
        before = sorted(tmp_path.rglob("*"))
        mine.main()
        lines = capsys.readouterr().out.splitlines()
        assert not endpoint.requests and sorted(tmp_path.rglob("*")) == before
        assert lines[0] == "dry run, nothing is sent"
        assert lines[1] == "queries: 2 (0 that are searched as often have no clicked item)"
        assert lines[2] == "questions: 6, 3 a query; 0 are in the journal"
        assert lines[3] == "requests: 6 if none fails, 18 at most (retries=2)"
        assert lines[5:] == ["answer tokens: 2,400 at most (max_tokens=400)", "budget: max_requests=7"]
        mined(tmp_path, endpoint.config(), per_query=2)  # of other prompts: two a query, not three
        sent = len(endpoint.requests)
        mined(tmp_path, endpoint.config(), per_query=3)
        mine.main()
        lines = capsys.readouterr().out.splitlines()
        assert (
            len(endpoint.requests) == sent + 6
            and "6 are in the journal" in lines[2]
            and "requests: 0 if none fails" in lines[3]
        )


def test_similarity_is_the_share_of_common_sequences():
    assert similarity(shingles("abcdef"), shingles("abcdef")) == 1
    assert similarity(shingles("abcdef"), shingles("ABCDEX")) == 0.5  # abcd bcde of abcd bcde cdef, abcd bcde cdex
    assert similarity(shingles("苹果手机怎么用"), shingles("苹果手机怎么修")) == 3 / 5
    assert similarity(shingles("ab"), shingles("cd")) == 0


def test_near_copies_of_the_exemplar_and_of_each_other_are_dropped_and_counted(tmp_path):
    near = GOOD | {"ocr_cover": "Transformer toys!", "photo_caption": "A box is opened"}
    assert isinstance(read_answer(json.dumps(near), "transformer", EXEMPLAR, 200, 1.0), Written)
    assert read_answer(json.dumps(near), "transformer", EXEMPLAR, 200, 0.8) == "copy_of_exemplar"
    again = [GOOD | {"photo_caption": f"Two coils and a core, explained{mark}"} for mark in (".", "!", "?")]
    with FakeEndpoint(lambda n: (200, completion(json.dumps(again[n % 3])))) as endpoint:
        counts, rejects = mined(tmp_path, endpoint.config())
        assert (counts["P3"], rejects) == (2, {"near_duplicate": 4})
        counts, rejects = mined(tmp_path, endpoint.config(), max_similarity=1.0)
        assert (counts["P3"], rejects, len(endpoint.requests)) == (6, {}, 6)  # paid for once


def test_a_prompt_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("[system]\nBe brief.\n[user]\nFrage: $query\nZum Beispiel: $example ($number/$total) für $$5\n")
    chat = messages("q", EXEMPLAR, 1, 2, 20, one_shot(str(path)))
    assert chat[0] == {"role": "system", "content": "Be brief."}
    assert (
        chat[1]["content"].startswith('Frage: "q"\nZum Beispiel: {"ocr_cover"') and "(1/2) für $5" in chat[1]["content"]
    )
    for text, said in {
        "[user]\n$query": r"never puts in \$example", "Hello": "text before its first part",
        "[user]\n$query $example $price": r"puts in \$price", "[user]\n$query $example costs $ 5": "single \\$",
        "[system]\n$query $example": r"has no part \[user\]",
    }.items():  # fmt: skip
        other = tmp_path / f"{abs(hash(text))}.txt"
        other.write_text(text)
        with pytest.raises(InputError, match=said):
            check_config(WorldKnowledgeConfig(prompt=str(other)))
    with pytest.raises(InputError, match="no prompt that can be read"):
        check_config(WorldKnowledgeConfig(prompt=str(tmp_path / "none.txt")))
    with pytest.raises(InputError) as error:
        check_config(WorldKnowledgeConfig(max_requests=-1, max_similarity=0, per_query=0))
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "max_similarity",
        "per_query",
        "max_requests",
    ]
