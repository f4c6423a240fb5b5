"""`python -m crops_jax`: what it lists, and that each of these names is a command."""

import re
import sys

import pytest
from places import ROOT
from shop import command, manifest, write_logs

from crops_jax import __main__ as front
from crops_jax.command_line import VERBS
from crops_jax.errors import InputError


def verbs_at_the_door():
    """The modules that run as commands."""
    runs = {path.stem for path in (ROOT / "crops_jax").glob("*.py") if "\n    run_command(main" in path.read_text()}
    return runs - {"__main__"}


@pytest.mark.parametrize("flags", [(), ("-h",), ("--help",)])
def test_every_command_is_listed_in_the_order_of_the_work_with_what_it_does(flags, capsys):
    command(front, None, *flags)
    listed = re.findall(r"^  (\w+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert listed == [(name, verb.does) for name, verb in VERBS.items()]
    assert {name for name, _ in listed} == verbs_at_the_door()


def test_the_readme_names_every_command():
    table = (ROOT / "README.md").read_text().split("| verb | makes |")[1].split("\n\n")[0]
    named = {word.split()[0] for cell in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
             for word in re.findall(r"`([^`]*)`", cell)}  # fmt: skip
    assert named == VERBS.keys()


def test_a_command_runs_as_by_its_own_module_and_an_unknown_one_names_all(tmp_path, capsys):
    logs = write_logs(tmp_path / "logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "crops_jax.check_logs", raising=False)  # it is run anew, and warns of a loaded one
        command(front, None, "check_logs", str(logs))
    assert manifest(logs)["kind"] == "logs"
    assert "16 searches" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"mined: is no command; they are simulate_logs, check_logs, mine, "):
        command(front, None, "mined")
