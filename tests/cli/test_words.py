"""Words of the command line and of configuration files: repeated flags combine, and lists take commas and spaces."""

import itertools

import pytest

import flowcollapse as fc
from flowcollapse.cli import said_once
from flowcollapse.cli.animate import Animate
from flowcollapse.cli.compare import Compare
from flowcollapse.cli.options import Lanes, seeds_of
from flowcollapse.cli.reproduce import Reproduce
from flowcollapse.cli.simulate import Simulate
from flowcollapse.cli.sweep import Sweep
from flowcollapse.cli.verify import Verify
from flowcollapse.cli.words import Kind, flags_of

COMMANDS = {
    "simulate": Simulate,
    "sweep": Sweep,
    "compare": Compare,
    "reproduce": Reproduce,
    "verify": Verify,
    "animate": Animate,
}


DESCENT = "simulate --method descent"


def said(line: str) -> list[str]:
    name, *words = line.split(" ")
    return said_once(COMMANDS[name], name, words)[1:]


@pytest.mark.parametrize(
    "line",
    [
        "sweep --eps 0.1 --eps 0.2",
        "sweep --eps=0.1 --eps=0.2",
        "sweep --eps 0.1,0.2",
        "sweep --eps 0.1, 0.2",
        "sweep --eps=0.1,0.2",
        "sweep --eps=0.1 0.2 --eps 1e-1",
        "sweep --eps 0.1 --eps 0.2 --eps 0.2",
    ],
)
def test_lists_are_united(line):
    assert said(line) == ["--eps", "0.1", "0.2"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_with_one_value_refuses_two(name):
    """All flags, including those added later."""
    for flag in flags_of(COMMANDS[name]).values():
        first, second = (flag.choices * 2)[:2] if flag.choices else ("1", "2")
        if flag.kind in (Kind.ONE, Kind.ROW):
            for sign, other in itertools.product("-_", "= "):
                spelt = "--" + flag.name.replace("_", sign)
                with pytest.raises(fc.UsageError, match=f"{flag.word} is given twice"):
                    said(f"{name} {flag.word} {first} {spelt}{other}{second}")
        elif flag.kind is Kind.SWITCH:
            with pytest.raises(fc.UsageError, match=f"{flag.word} is given twice"):
                said(f"{name} {flag.word} --no-{flag.word[2:]}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("simulate --t1 1 --t1=1.0", ["--t1=1.0"]),
        ("simulate --t1 -1", ["--t1=-1"]),
        ("simulate --weight_decay 0.1,0.2,0.3", ["--weight-decay", "0.1", "0.2", "0.3"]),
        ("simulate --start On_Subspace", ["--start=On_Subspace"]),  # a name that the registry looks up
        ("simulate --method DESCENT", ["--method=descent"]),
        ("simulate --reduced true", ["--reduced=True"]),
        ("simulate --metrics snc1,risk --metrics risk nc1", ["--metrics", "snc1", "risk", "nc1"]),
        (f"{DESCENT} --hyperparameters b1=2,b2=3", ["--method=descent", "--hyperparameters", "b1", "2", "b2", "3"]),
        (
            f"{DESCENT} --hyperparameters b1 2 --hyperparameters b2 3",
            ["--method=descent", "--hyperparameters", "b1", "2", "b2", "3"],
        ),
        ("sweep --axis learning-rate=0.1 0.2 --axis t1=1", ["--axis", "learning_rate=0.1,0.2", "--axis", "t1=1"]),
        ("sweep --axis learning-rate=0.1,0.2,t1=1", ["--axis", "learning_rate=0.1,0.2", "--axis", "t1=1"]),
        ("sweep --axis t1=1 --axis t1=1,2", ["--axis", "t1=1,2"]),
        ("sweep --seeds 0:2 --seeds 4,5", ["--seeds", "0:2", "4", "5"]),
        ("compare --optimizer a:b=1,c=2 d", ["--optimizer", "a:b=1,c=2", "--optimizer", "d"]),
        (
            "compare --optimizer a:b=1,c=2,d,e:f=1",
            ["--optimizer", "a:b=1,c=2", "--optimizer", "d", "--optimizer", "e:f=1"],
        ),
        ("compare --optimizer a, mine:b:c=1", ["--optimizer", "a", "--optimizer", "mine:b:c=1"]),
        ("compare --optimizer a --optimizer b", ["--optimizer", "a", "--optimizer", "b"]),
        ("verify --only spectrum,kappa --only kappa", ["--only", "spectrum", "kappa"]),
        ("reproduce --eps", ["--eps"]),
    ],
)
def test_words_are_said_once(line, words):
    assert said(line) == words


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["4"], 4),
        (["0:4"], [0, 1, 2, 3]),
        (["1:8:3"], [1, 4, 7]),
        (["3", "5", "8"], [3, 5, 8]),
        (["0:3", "2:5"], [0, 1, 2, 3, 4]),
        (["7:8"], [7]),
    ],
)
def test_seeds_are_a_count_a_range_or_a_list(words, seeds):
    found = seeds_of(words)
    assert (found if isinstance(found, int) else list(found)) == seeds


def test_a_list_of_one_seed_is_no_count():
    assert said("sweep --seeds 7,") == ["--seeds", "7:8"]


def test_axes_of_several_numbers():
    axes = Lanes(axis=("weight_decay=0:0:0,0.1:0.1:0", "samples_per_class=3,10")).axes(fc.sweep)
    assert axes == {"weight_decay": [(0, 0, 0), (0.1, 0.1, 0)], "samples_per_class": [3, 10]}


def config(tmp_path, content: str | bytes, name: str = "simulate", words: str = "") -> list[str]:
    file = tmp_path / "c.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = said_once(COMMANDS[name], name, [*words.split(), "--config", str(file)])
    return [word for word in found[1:] if not word.startswith("--config")]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path, mark):
    assert config(tmp_path, mark + "seed = 3  # ε\n".encode()) == ["--seed=3"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("simulate", "[start]\neps = 0.5\n[output]\nts = [0, 1.5]", ["--eps=0.5", "--ts", "0", "1.5"]),
        ("simulate", "reduced = true\nuse-bias = false", ["--reduced=True", "--no-use-bias"]),
        ("compare", "optimizer = ['sgd:b=1,c=2', 'adam']", ["--optimizer", "sgd:b=1,c=2", "--optimizer", "adam"]),
        ("sweep", "seeds = [7]", ["--seeds", "7:8"]),
        ("sweep", "seeds = '0:8'\n[axes]\nt1 = [1, 2]", ["--seeds", "0:8", "--axis", "t1=1,2"]),
        ("reproduce", "eps = [0.1]\nseeds = 4", ["--eps", "0.1", "--seeds", "4"]),
        ("verify", "only = 'spectrum,kappa'\nquiet = true", ["--only", "spectrum", "kappa", "--quiet"]),
    ],
)
def test_every_command_takes_a_file(tmp_path, name, content, words):
    assert config(tmp_path, content, name) == words


def test_the_command_line_replaces_what_the_file_says(tmp_path):
    content = "eps = [1.0, 0.1]\nuse_bias = false\n[axes]\nt1 = [1, 2]\nrtol = [1e-4]\n"
    content += "[method]\nmethod = 'descent'\nhyperparameters = {b1 = 0.8, b2 = 0.9}"
    words = config(tmp_path, content, "sweep", "--eps 0.3 --use-bias --axis t1=5 --hyperparameters b2 0.5")
    expected = "--eps 0.3 --use-bias --axis t1=5 --axis rtol=0.0001 --method=descent --hyperparameters b1 0.8 b2 0.5"
    assert words == expected.split()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfes\x00", "is not UTF-8"),
        (b"name = '\xe9'", "is not UTF-8 .byte 8."),
        ("eps = ", "is not TOML"),
        ("epz = 1", "'epz' is not a key; did you mean 'eps'"),
        ("[start]\nnum_classes = 3", r"'num_classes' is not a key of .start."),
        ("eps = true", "eps must be one value, got True"),
        ("eps = [1, 2]", "eps must be one value"),
        ("use_bias = 'yes'", "use_bias must be true or false"),
        ("metrics = [['snc1']]", "metrics must be a list of values"),
        ("t1 = 1\n[method]\nt1 = 2", "--t1 is given twice, as 1 and as 2"),
        ("num-saves = 1\nnum_saves = 2", "--num-saves is given twice"),
        ("config = 'other.toml'", "'config' is not a key"),
    ],
)
def test_files_that_cannot_be_are_told(tmp_path, content, told):
    with pytest.raises(fc.UsageError, match=told):
        config(tmp_path, content)
