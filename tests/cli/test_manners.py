"""The command line on a terminal and in a shell: colours, completion, configuration files, and examples that run."""

import glob
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowcollapse as fc
from flowcollapse import cli

COMMANDS = cli.commands()


def examples(name: str, capsys) -> list[list[str]]:
    """The commands that the help of a command shows."""
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out.partition("Example:\n")[2]
    return [shlex.split(line) for line in shown.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files of a training run, and later with those that the examples write."""
    folder = tmp_path_factory.mktemp("examples")
    random = np.random.default_rng(0)
    for epoch in (1, 2):
        features = np.repeat(np.eye(3), 5, axis=0) + random.standard_normal((15, 3)) / epoch
        np.savez(folder / f"epoch{epoch}.npz", features=features, labels=np.repeat(range(3), 5))
    return folder


WRITTEN = {
    "reproduce": "figures/reproduce.nc figures/figure1.png figures/figure2.pdf",
    "simulate": "run.nc",
    "sweep": "runs.zarr",
    "compare": "both.nc",
    "measure": "collapse.csv collapse.png",
    "plot": "snc1.png",
    "animate": "collapse.gif",
    "report": "run.html",
    "show": "pictures/order-of-learning.nc pictures/order-of-learning.png",
    "verify": "laws.json",
    "init": "simulate.toml",
}
"""The files that the examples write."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_every_help_run(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    lines = examples(name, capsys)
    assert lines
    assert any(line[1] == name for line in lines)
    if name in ("plot", "report") and not Path("run.nc").exists():
        lines = [*examples("simulate", capsys), *lines]
    for program, *words in lines:
        assert program == "flowcollapse"
        words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""
    for file in WRITTEN.get(name, "").split():
        assert Path(file).exists()
        if Path(file).is_file():
            assert Path(file).stat().st_size > 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_a_configuration_file(name, tmp_path, capsys):
    """A flag in the file counts like one on the command line. A wrong value is refused before any work begins."""
    flags = cli.said_once(COMMANDS[name], name, ["--quiet"])
    assert flags == [name, "--quiet"]
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfquiet = true  # \xce\xb5\n")
    words = cli.said_once(COMMANDS[name], name, ["--config", str(tmp_path / "c.toml")])
    assert set(words) == {name, "--quiet", f"--config={tmp_path / 'c.toml'}"}
    (tmp_path / "c.toml").write_text("quiet = 3")
    assert cli.main([name, "--config", str(tmp_path / "c.toml")]) == 2
    assert "c.toml: quiet must be true or false, got 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("info", "doctor", "completion", "init")])
def test_every_command_can_be_configured_by_init(name, tmp_path):
    assert cli.main(["init", str(tmp_path / "c.toml"), "--command", name, "--quiet"]) == 0
    assert cli.said_once(COMMANDS[name], name, ["--config", str(tmp_path / "c.toml")])[0] == name


def on_a_terminal(*words: str, **variables: str) -> str:
    """The output of a command on a terminal."""
    import pty

    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | variables
    reader, writer = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "flowcollapse", *words], stdout=writer, env=environment)
    os.close(writer)
    told = b""
    try:
        while part := os.read(reader, 4096):
            told += part
    except OSError:  # Linux tells the end so
        pass
    os.close(reader)
    assert process.wait(timeout=60) == 0
    return told.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_colours_follow_the_terminal_and_no_color():
    assert "\x1b[" in on_a_terminal("verify", "--help")
    assert "\x1b[" in on_a_terminal("verify", "--help", NO_COLOR="")  # empty counts as not set
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = on_a_terminal("verify", "--help", **variables)
        assert "\x1b[" not in plain
        assert "--only" in plain


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_choices_and_files(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "run.nc").touch()
    (tmp_path / "python3").symlink_to(sys.executable)
    lines = ["source ./script", "complete -p flowcollapse"]
    for words in (
        "flowcollapse si",
        "flowcollapse simulate --met",
        "flowcollapse simulate --method ''",
        "flowcollapse plot r",
    ):
        lines += [f"COMP_WORDS=({words})", "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))"]
        lines += ["_tyro_flowcollapse", 'echo "${#COMPREPLY[@]} ${COMPREPLY[*]}"']
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    known, *found = done.stdout.splitlines()
    assert "-o default" in known  # files, where the script has nothing to offer
    assert found == ["1 simulate", "2 --method --metrics", "2 flow descent", "0 "]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_of_all_commands(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)


def test_the_version_is_the_same_from_everywhere():
    for words in (["--version"], ["--quiet", "--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "flowcollapse", *words], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"flowcollapse {fc.__version__}\n", "")
