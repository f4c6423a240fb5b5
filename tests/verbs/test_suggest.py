"""`python -m crops_jax.suggest` from logs to the page, in small, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hand_logs import DAY, T0, candidate, feed, followed, item, search, suggested, typed, write, write_day
from hand_logs import write_suggestions as suggestions
from shop import command, flip

from crops_jax import check_logs, encode, evaluate, export, suggest, train, write_records
from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.batches.config import InputConfig
from crops_jax.command_line import load_file
from crops_jax.config import Experiment
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.models.config import BartConfig, DualEncoderConfig, Qwen2Config
from crops_jax.records import RecordsConfig
from crops_jax.runs.exported_writer import load_exported_writer
from crops_jax.runs.suggestions import encoder_of, trained_writer
from crops_jax.suggestions.answers import read_answers
from crops_jax.suggestions.arms import AlignedEncoderConfig, WriterConfig
from crops_jax.suggestions.config import BeamConfig, RQVAEConfig, RWRConfig, SuggestMiningConfig
from crops_jax.suggestions.examples import read_examples
from crops_jax.suggestions.records import ExamplesReader
from crops_jax.suggestions.searched import read_searched
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.testset import read_suggestion_testset
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig

QUERIES = ("lamp", "lava rock", "lamp shade", "desk", "desk lamp", "灯")
USERS = 24


def write_logs(logs):
    """User u wants query u mod 6: types two letters, is shown three queries with them, takes the one that is meant."""
    write(logs / "items.parquet", "items", [item(n, query) for n, query in enumerate(QUERIES)])
    for day, begin in (("train", T0), ("test", T0 + 2 * DAY)):
        searches, typing, offered, behind = [], [], [], []
        for user in range(USERS):
            wanted, now = QUERIES[user % 6], begin + 60_000 * user
            request = f"{day}{user}"
            typing.append(typed(request, user, wanted[:2], now))
            like = [query for query in QUERIES if query.startswith(wanted[:2])]
            offered += suggested(request, like, 9, wanted)
            behind += [followed(request, wanted, 0, now + 20, user % 4 == 0)] if user % 2 else []
            searches += [
                search(f"{day}s{user}", user, wanted, now + 10),
                search(f"{day}z{user}", user, "desk", now - 99),
            ]
        write_day(logs, day, searches, [candidate(f"{day}s0", 0)], [feed(1, 0, begin)])
        suggestions(logs, day, typing, offered, behind)
    command(check_logs, None, str(logs))


def arms(work):
    encoder = Experiment(
        name="aligned", title="Encoder", workdir=str(work), world=None, vocabulary=270,
        suggest_mining=SuggestMiningConfig(engine=EngineConfig(memory_limit="500MB")),
        suggest=AlignedEncoderConfig(),
        text=TextConfig(append_eos=True, max_query_tokens=12, max_doc_tokens=12),
        records=RecordsConfig(shards=1, validation_share=0),
        input=InputConfig(batch_queries=8, docs_per_query=1, shards=8),
        model=DualEncoderConfig(
            backbone=Qwen2Config(vocab_size=270, width=16, layers=1, heads=2, kv_heads=1, head_size=8, ffn=16),
            tie_towers=True,
        ),
        optim=OptimConfig(learning_rate=3e-3), train=TrainConfig(steps=3, save_every=3),
    )  # fmt: skip
    model = BartConfig(
        vocab_size=270, width=16, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=32,
        decoder_ffn=32, max_positions=32, init_std=0.2,
    )  # fmt: skip
    config = WriterConfig(
        model=model, encoder="aligned", ids=RQVAEConfig(levels=2, codes=2, width=4, steps=20, batch=8), losers=2,
        recent=1, max_source_tokens=32, max_query_tokens=12, shards=1, beam=BeamConfig(beams=16),
        beam_requests=4,
    )  # fmt: skip
    sft = replace(encoder, name="sft", title="Likelihood", suggest=config, optim=OptimConfig(learning_rate=1e-2),
                  train=TrainConfig(steps=120, save_every=60))  # fmt: skip
    rwr = replace(sft, name="rwr", title="Preferences", suggest=replace(config, start="sft", rwr=RWRConfig()),
                  optim=OptimConfig(learning_rate=1e-3), train=TrainConfig(steps=10, save_every=10))  # fmt: skip
    return [encoder, sft, rwr]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(the arms, the folder of the page) after the whole job."""
    work = tmp_path_factory.mktemp("suggest")
    write_logs(work / "logs")
    made = arms(work)
    return made, suggest.run(made, [0], "the command")


@pytest.mark.slow
def test_the_writer_learns_what_is_meant_and_the_page_says_so(done):
    made, report = done
    results = json.loads((report / "results.json").read_text())
    assert [row["title"] for row in results["rows"]] == [
        "Popular completions", "Personal completions", "Cascade", "Likelihood", "Preferences"
    ]  # fmt: skip
    assert results["events"] == USERS and results["main_arm"] == "Preferences"
    hit = {row["title"]: row["figures"]["click|all|HR@16"]["value"] for row in results["rows"]}
    # All six queries fit among the suggestions; what a writer may write is known, and it learned whole queries.
    assert hit["Popular completions"] == 1.0 and hit["Likelihood"] > 0.7 and hit["Preferences"] > 0.7
    # Each user searched next what was taken, so both truths are one.
    assert results["next"]["events"] == results["next"]["taken"] == results["next"]["shown"] == USERS
    for row in results["rows"]:
        same = row["figures"]["next|all|MRR@16"]["value"], row["figures"]["click|all|MRR@16"]["value"]
        assert same[0] == same[1] and row["figures"]["typed|all|MRR@16"] is None
    table = (report / "results.md").read_text()
    assert "100.0 % were taken from production's suggestions" in table
    assert "Likelihood against Preferences" in table and "MRR@16 by the letters of the prefix" in table
    assert "<h1>Query suggestion" in (report / "suggestions.html").read_text()
    for arm in made:
        for kind in ("records", "train"):
            verify(arm.arm_folder(kind))


@pytest.mark.slow
def test_records_have_related_queries_and_what_the_reference_says(done):
    (_, sft, rwr), _ = done
    plain, referenced = (ExamplesReader(arm.arm_folder("records")) for arm in (sft, rwr))
    assert len(plain) == len(referenced) == USERS and plain.counts["referenced"] == 0
    for example in referenced.read(range(USERS)):
        assert len(example.related) == 3 and example.recent[:1] == ["desk"]
        assert len(example.reference) == 1 + len(example.rejected) and (example.reference < 0).all()


@pytest.mark.slow
def test_what_is_whole_is_kept_and_a_changed_loss_trains_one_arm(done, monkeypatch):
    made, report = done
    ran = []
    monkeypatch.setattr(train, "run", lambda e: ran.append(e.name))
    assert suggest.run(made, [0], "again") == report and ran == []
    encoder, sft, rwr = made
    pairs = replace(rwr, suggest=replace(rwr.suggest, rwr=RWRConfig(rows="pair")))
    suggest.run([encoder, sft, pairs], [0], "changed")
    assert ran == ["rwr"]


@pytest.mark.slow
def test_an_export_is_read_back_and_answers_whatever_is_typed(done):
    (_, _, rwr), _ = done
    folder = rwr.arm_folder("export")
    manifest = read_manifest(folder)
    assert manifest["counts"]["golden_difference"] <= 1e-4
    golden = json.loads((folder / "writer/golden.json").read_text())
    assert golden["limits"] == {"max_source_tokens": 32, "max_query_tokens": 12, "recent": 1, "lowercase": False}
    assert json.loads((folder / "writer/queries.json").read_text()) == sorted(QUERIES)
    assert (folder / "semantic_index/quantiser.safetensors").is_file()
    writer = trained_writer(rwr, encoder_of(rwr))
    strange = Asked(["", "l", "LA ", "ωμέγα", "x" * 1_999, "\u3000灯"], [None, 1, 10**9, 2, 3, 4], [[]] * 6)
    found = writer.suggest(strange, 3)
    assert [len(row) for row in found] == [3] * 6 and {q for row in found for q in row} <= {*QUERIES}
    assert writer.suggest(Asked([], [], [])) == []
    alone = load_exported_writer(folder)
    assert alone.suggest(strange, 3) == found
    prefixes = read_suggestion_testset(rwr.folder("suggestion_testset")).asked.prefixes
    assert alone.related(prefixes) == writer.related(prefixes)
    free = replace(rwr, suggest=replace(rwr.suggest, known=False))
    assert all(len({*row}) == len(row) for row in trained_writer(free, encoder_of(free)).suggest(strange))
    answers, ms = read_answers(rwr.arm_folder("eval"))
    assert len(answers) == 2 * USERS and ms > 0, "of both truths"


def test_every_seed_that_is_asked_for_is_trained_in_a_folder_of_its_own(tmp_path):
    """Whichever comes first; the arm that it starts from has the same seed, and the encoder stays."""
    encoder, sft, rwr = arms(tmp_path)
    assert [suggest.of_seed(rwr, seed).name for seed in (1, 0)] == ["rwr_seed1", "rwr"]
    other = suggest.of_seed(rwr, 1)
    assert (other.seed, other.input.seed, other.suggest.start, other.suggest.encoder) == (1, 1, "sft_seed1", "aligned")
    assert suggest.of_seed(sft, 1).suggest.start == "" and suggest.of_seed(encoder, 1) == encoder


def test_writers_have_their_own_seed_unless_others_are_asked_for(tmp_path, monkeypatch):
    encoder, sft, rwr = arms(tmp_path)
    made = {"e": replace(encoder, seed=7), "s": replace(sft, seed=3), "r": replace(rwr, seed=3)}
    monkeypatch.setattr(suggest, "load_file", made.__getitem__)
    monkeypatch.setattr(suggest, "override", lambda e, *_: e)
    assert suggest._arms(["--configs", *made])[1] == [3]
    assert suggest._arms(["--configs", *made, "--seeds", "0,1"])[1] == [0, 1]


def test_a_flag_of_writers_is_none_of_the_encoder(tmp_path):
    encoder, sft, rwr = suggest._with_flags(
        arms(tmp_path), ["--suggest.recent", "0", "--suggest.rwr.form=printed", "--train.steps=7"])  # fmt: skip
    assert (sft.suggest.recent, rwr.suggest.recent, sft.suggest.rwr) == (0, 0, None)
    assert rwr.suggest.rwr.form == "printed" and {encoder.train.steps, sft.train.steps} == {7}
    with pytest.raises(InputError, match=r"--suggest\.recant: no such field"):
        suggest._with_flags(arms(tmp_path), ["--suggest.recant=0"])


@pytest.mark.slow
def test_an_arm_that_learned_from_another_day_is_not_taken_for_today_s(done):
    (encoder, sft, rwr), _ = done
    suggest.run([rwr], [0], "alone")
    fewer = replace(rwr.suggest_mining, recent=1)
    with pytest.raises(InputError, match="the arm 'aligned' learned from another mined day; name its file before"):
        suggest.run([replace(rwr, suggest_mining=fewer)], [0], "of another day")
    suggest.run([encoder, sft, rwr], [0], "as it was")


def test_arms_that_lack_what_they_need_are_all_named(tmp_path):
    write_logs(tmp_path / "logs")
    encoder, sft, rwr = arms(tmp_path)
    search_arm = replace(encoder, name="search", suggest=None)
    other = replace(sft, name="other", seed=3, suggest=replace(
        sft.suggest, ids=RQVAEConfig(levels=3, codes=2), beam=BeamConfig(suggestions=4)))  # fmt: skip
    with pytest.raises(InputError) as caught:
        suggest.run(
            [rwr, search_arm, replace(encoder, workdir="elsewhere"), sft, replace(sft, name="baselines"), other],
            [0, 1],
            "",
        )
    told = "\n".join(caught.value.problems)
    for part in ("writers of different seeds (rwr 0, sft 0, baselines 0, other 3): give them one, and", "--seeds",
                 "rwr: needs the arm 'sft'", "rwr: needs the arm 'sft_seed1'", "rwr: needs the arm 'aligned'",
                 "search: trains a dual encoder", "aligned: workdir", "baselines: is the name of",
                 "other: codes the queries of", "other: suggest.beam.suggestions = 4: the page compares"):  # fmt: skip
        assert part in told, told


def test_rows_have_titles_and_arms_roles_of_their_own(tmp_path):
    encoder, sft, rwr = arms(tmp_path)
    odd = [
        encoder, replace(sft, title="Cascade"), replace(rwr, title=encoder.title),
        replace(sft, name="selfish", title="A", suggest=replace(sft.suggest, start="selfish")),
        replace(sft, name="odd", title="B", suggest=replace(sft.suggest, start="aligned", encoder="sft")),
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        suggest._check(odd, [0])
    told = "\n".join(caught.value.problems)
    for part in ("sft: 'Cascade' is the title of another row", "rwr: 'Encoder' is the title of another row",
                 "selfish: suggest.start is the arm itself", "odd: suggest.start is 'aligned', which is no writer",
                 "odd: suggest.encoder is 'sft', which aligns no encoder"):  # fmt: skip
        assert part in told, told


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [
    "rwr/eval/suggestions.parquet", "mined_suggestions/searched/part-0.parquet",
    "mined_suggestions/preferences/part-0.parquet", "suggestion_testset/taken.parquet",
])  # fmt: skip
def test_a_flipped_bit_is_told_by_what_reads_it(done, tmp_path, damaged):
    work = Path(done[0][0].workdir)
    shutil.copytree(work / damaged.split("/")[0], tmp_path / damaged.split("/")[0])
    flip(tmp_path / damaged)
    readers = {"rwr": read_answers, "mined_suggestions/s": read_searched, "suggestion_t": read_suggestion_testset,
               "mined_suggestions/p": lambda folder: next(read_examples(folder, 1))}  # fmt: skip
    read = next(reader for name, reader in readers.items() if damaged.startswith(name))
    folder = tmp_path / ("rwr/eval" if damaged.startswith("rwr") else damaged.split("/")[0])
    with pytest.raises(InputError, match=Path(damaged).name):
        read(folder)


def test_bart_base_and_its_encoder_stand_beside_each_other():
    pair = [load_file(f"configs/onesug_bart_base{part}.py") for part in ("_encoder", "")]
    suggest._check(pair, [0])
    assert pair[1].suggest.encoder == pair[0].name


def test_verbs_of_search_say_whose_arm_it_is(tmp_path):
    for verb in (write_records, encode, evaluate, export):
        with pytest.raises(InputError, match=r"arm 'sft': belongs to query suggestion: python -m crops_jax\.suggest"):
            verb.run(arms(tmp_path)[1])


def test_a_log_without_suggestions_says_which_table_is_missing(tmp_path):
    write_logs(tmp_path / "logs")
    for table in ("suggestions", "suggested", "followed"):
        (tmp_path / f"logs/train/{table}.parquet").unlink()
    command(check_logs, None, str(tmp_path / "logs"))
    with pytest.raises(InputError, match=r"holds no suggestions\.parquet"):
        suggest.run(arms(tmp_path), [0], "")
