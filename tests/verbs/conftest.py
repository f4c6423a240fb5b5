"""One small shop that every verb has run on, for the tests that look at what the verbs wrote."""

import shutil
from dataclasses import replace

import pytest
from shop import command, experiment, words_for_theta, write_logs

from crops_jax import build_index, bundle, check_logs, encode, evaluate, export, mine, train, write_records


@pytest.fixture(scope="session")
def shop_logs(tmp_path_factory):
    """(the experiment after all verbs of the log half, the thetas that they asked for)."""
    e = experiment(tmp_path_factory.mktemp("logs"))
    write_logs(e.folder("logs"))
    command(check_logs, None, str(e.folder("logs")))
    with words_for_theta() as asked:
        command(mine, e)
    command(write_records, e)
    return e, asked


@pytest.fixture(scope="session")
def shop(shop_logs, tmp_path_factory):
    """The experiment after all verbs."""
    e = copy_of(shop_logs[0], tmp_path_factory.mktemp("shop"))
    for verb in (train, encode, build_index, evaluate, export, bundle):
        command(verb, e)
    return e


@pytest.fixture
def own_logs(shop_logs, tmp_path):
    """The log half in a folder that a test may spoil."""
    with words_for_theta():
        yield copy_of(shop_logs[0], tmp_path)


@pytest.fixture
def own_shop(shop, tmp_path):
    """All of it in a folder that a test may spoil."""
    return copy_of(shop, tmp_path)


def copy_of(e, folder):
    shutil.copytree(e.workdir, folder / "work")
    return replace(e, workdir=str(folder / "work"))
