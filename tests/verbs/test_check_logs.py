"""check_logs: what is sealed, and what stops there or in every stage after it."""

import shutil

import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, feed, write
from shop import command, manifest, write_logs

from crops_jax import calibrate, check_logs, mine, pipeline, write_records
from crops_jax.artifacts.manifest import seal, verify
from crops_jax.errors import InputError


def test_check_logs_seals_a_folder_whose_days_are_both_sound(tmp_path, capsys):
    logs = write_logs(tmp_path / "logs")
    command(check_logs, None, str(logs))
    made, said = manifest(logs), capsys.readouterr().out
    assert made["kind"] == "logs" and {"items.parquet", "test/feed.parquet"} <= {f["path"] for f in made["files"]}
    assert {day: made["counts"][day]["rows"]["searches"] for day in ("train", "test")} == {"train": 16, "test": 13}
    assert "16 searches" in said and "13 searches" in said and "1 item_without_text, e.g. item_id=24" in said
    with pytest.raises(SystemExit) as ended:
        command(check_logs, None)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        *[
            (day, rf"day '{day}'\): feed\.item_id: 1 rows .* e\.g\. item_id=999")
            for day in ("train", "validation", "test")
        ],
        (
            "overlap",
            r"the test day leaks into mining: 3 problems\n.*train/feed\.ts: 1 rows at or after 1750172800000 "
            r"\(2025-06-17 15:06:40\+00:00\), the first moment of day 'test' \(feed\)\n"
            r".*test/searches\.ts: 13 of 13 rows",
        ),
        ("validation by the test", r"the test day leaks into validation[\s\S]*13 requests are in both days"),
        ("no day", "holds no folder train/ with searches, candidates and feed"),
    ],
)
def test_check_logs_seals_nothing_that_is_not_sound(spoilt, said, tmp_path):
    logs = write_logs(tmp_path / "logs")
    seal(logs, kind="logs", config=None, inputs={}, counts={})  # as it was before
    if spoilt.startswith("validation"):
        shutil.copytree(logs / "test", logs / "validation")
    if spoilt == "no day":
        shutil.rmtree(logs / "train")
    elif spoilt == "overlap":
        write(logs / "train/feed.parquet", "feed", [feed(0, 0, T0 + 3 * DAY)])
    elif spoilt != "validation by the test":
        write(logs / spoilt / "feed.parquet", "feed", [feed(0, 999, T0)])
    with pytest.raises(InputError, match=said):
        check_logs.run(logs)
    assert not (logs / "manifest.json").exists()


def test_a_feed_of_other_users_than_the_searches_is_told(tmp_path, capsys):
    logs = write_logs(tmp_path / "logs")
    write(logs / "train/feed.parquet", "feed", [feed(999, 0, T0)])
    command(check_logs, None, str(logs))
    assert capsys.readouterr().out.count("no user of the feed has a search, so there will be no P2: does user_id") == 1


@pytest.mark.parametrize("share", ["50", "nan", "-0.1"])
def test_a_share_that_is_none_checks_nothing_and_leaves_the_seal(tmp_path, share):
    logs = write_logs(tmp_path / "logs")
    seal(logs, kind="logs", config=None, inputs={}, counts={})
    with pytest.raises(InputError, match=f"--max-reject-share {share}: is no share from 0 to 1"):
        command(check_logs, None, str(logs), f"--max-reject-share={share}")
    assert (logs / "manifest.json").exists()


def test_a_failed_check_takes_no_other_folders_seal_away(own_logs):
    mined = own_logs.folder("mined")
    with pytest.raises(InputError, match="holds no folder train/"):
        check_logs.run(mined)
    verify(mined)


def test_logs_that_were_cut_since_they_were_sealed_stop_every_stage_made_from_them(own_logs):
    table = own_logs.folder("logs") / "train/candidates.parquet"
    stages = [stage for stage in pipeline.data_stages(own_logs) if stage.name in ("mine", "test sets")]
    assert [stage.is_current() for stage in stages] == [True, True]
    table.rename(table.with_name("_candidates"))
    write(table, "candidates", pq.read_table(table.with_name("_candidates")).to_pylist()[:1])
    asked = [lambda stage=stage: pipeline.ensure(stage, own_logs, "") for stage in stages]
    asked += [lambda: mine.run(own_logs), lambda: calibrate.run(own_logs), lambda: write_records.run(own_logs)]
    for ask in asked:
        with pytest.raises(InputError, match=r"train/candidates\.parquet: \d+ bytes[\s\S]*crops_jax\.check_logs"):
            ask()
