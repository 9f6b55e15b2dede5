"""The commands that write a configuration file and that check an installation."""

import dataclasses
import re
import tomllib

import pytest
import tyro

from flowcollapse.cli import commands, doctor, main, said_once
from flowcollapse.cli.init import written

CONFIGURED = ("simulate", "sweep", "compare", "reproduce", "measure", "plot", "animate", "show", "verify")


def parsed(name, words):
    """The command of these words, as `main` would run it."""
    return tyro.extras.subcommand_cli_from_dict(
        commands(), args=said_once(commands()[name], name, words), config=(tyro.conf.OmitArgPrefixes,)
    )


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_written_file_holds_the_defaults(name, tmp_path):
    """With all values uncommented, the command is that without any flag."""
    path = tmp_path / "all.toml"
    text = re.sub(r"^#(\w+ = .+)$", r"\1", written(name), flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")
    found = parsed(name, ["--config", str(path)])
    assert found == dataclasses.replace(parsed(name, []), config=path)
    assert len(tomllib.loads(text)) > 0
    told = tomllib.loads(written(name))
    assert all(section == {} for section in told.values())


def test_init_writes_a_file_once(tmp_path, capsys):
    path = tmp_path / "new folder" / "sweep.toml"
    assert main(["init", str(path)]) == 0
    first = path.read_text()
    assert "#num_classes = 3\n" in first
    assert "# C, at least 2.\n" in first
    assert main(["init", str(path)]) == 2
    assert path.read_text() == first
    for words in (["init"], ["init", str(tmp_path / "a.yaml")]):
        assert main(words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [bool(re.search(word, line)) for word, line in zip(("exists", "missing", r"\.toml"), errors, strict=True)]
    assert len(errors) == 3


def test_the_name_of_the_file_chooses_the_command(tmp_path, capsys):
    for words, name in (("verify.toml", "verify"), ("mine.toml", "sweep"), ("sweep.toml --command show", "show")):
        file, *more = words.split()
        assert main(["init", str(tmp_path / name / file), *more]) == 0
        assert (tmp_path / name / file).read_text() == written(name)
        assert f"flowcollapse {name} --config" in capsys.readouterr().out


def test_the_doctor_finds_this_installation_well(capsys):
    assert main(["doctor", "--no-cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == set(doctor.CHECKS)
    assert all(line.startswith("ok") for line in lines)


def test_a_failed_check_is_told(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {"compiler": lambda: iter([(False, "3 wrong")])})
    assert main(["doctor", "--no-cache"]) == 1
    assert "FAIL  compiler" in capsys.readouterr().out
