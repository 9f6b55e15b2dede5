"""The command that runs one lane of a Dataset again, put together from the attributes of the Dataset."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .._errors import UsageError
from .._registry import arguments_of, described_by
from ..initial import STARTS
from ..losses.registry import LOSSES
from ..results.description import UNDESCRIBED

MODEL = ("num_classes", "samples_per_class", "num_features", "weight_decay", "use_bias", "reduction")
READ = {
    "flow": ("solver", "rtol", "atol", "t1", "max_steps", "coordinates", "clock"),
    "descent": ("optimizer", "num_steps", "coordinates"),
}
"""The flags that each method has under the names of its fields."""

WITHOUT_FLAG = {"flow": {"mesh": None, "until": None, "approach": "auto"}, "descent": {"options": [], "clock": None}}
"""The fields that have no flag, and the only value that the command line gives them."""

SINGLE = ("learning_rate", "momentum")
"""The numbers of an optimizer that have a flag; the others share one."""

TEXTS = {"loss": LOSSES, "start": STARTS}
"""The parts that are given as a text with numbers."""


class Rerun(NamedTuple):
    """The words of the command that runs a lane again.

    `common` are those that all lanes share, and `axes` those of each value of each axis. If no command can run the
    lanes, `reason` says why, and the others are empty.
    """

    common: str = ""
    axes: Mapping[str, list[str]] = {}
    reason: str = ""

    def command(self, where: Mapping[str, int]) -> str:
        """The command for the lane at these positions on the axes."""
        return " ".join(filter(None, [self.common, *(words[where[axis]] for axis, words in self.axes.items())]))


class _NoFlag(Exception):
    """A part of the run that the command line cannot express."""


def rerun(dataset: xr.Dataset) -> Rerun:
    """The words that run the lanes of a run, a sweep or a comparison again."""
    try:
        return _rerun(dataset)
    except (_NoFlag, UsageError, KeyError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, _NoFlag) else "its attributes do not say how it was made"
        return Rerun(reason=f"No command runs this again: {why}.")


def _rerun(dataset: xr.Dataset) -> Rerun:
    model, method = (dict(json.loads(dataset.attrs[name])) for name in ("model", "method"))
    told = json.loads(dataset.attrs.get("options", "{}"))
    texts = {"loss": model["loss"], "start": _start(dataset, told)}
    axes = [str(axis) for axis in dataset["verdict"].dims]
    methods = method if "method" in axes else {"": method}
    numbers = {name: _numbers(name, text) for name, text in texts.items()}
    common = ["flowcollapse simulate"]
    common += [_flag(name, model[name]) for name in MODEL if name not in axes]
    if not axes:  # one run, whose start is known only from the command that made it
        common += [_flag(name, told["start"][name]) for name in ("eps", "seed", "reduced")]
    for name, text in texts.items():
        if not set(numbers[name]) & set(axes):
            common.append(_flag(name, text))
    common.append(_flag("precision", dataset.attrs["precision"]))
    if "method" not in axes:
        common += _method(method, dataset, axes)
    parts: dict[str, list[str]] = {}
    for axis in axes:
        if axis == "method":
            parts[axis] = [_joined(_method(methods[str(key)], dataset, axes)) for key in dataset[axis].values]
        else:
            parts[axis] = [_of_axis(axis, value, texts, numbers, axes) for value in values_of(dataset, axis)]
    return Rerun(_joined(common), parts)


def _start(dataset: xr.Dataset, told: Mapping[str, Any]) -> str:
    """The text of the start."""
    if "start" in dataset.attrs:
        text = dataset.attrs["start"]
    elif "sweep" in dataset.attrs:
        text = json.loads(dataset.attrs["sweep"])["start"]
    elif "start" in told:
        text = told["start"]["start"]
    else:
        raise _NoFlag("it was made in Python, from a start that the file does not describe")
    if text == "given":
        raise _NoFlag("its starts were given as arrays")
    return text


def _numbers(kind: str, text: str) -> dict[str, Any]:
    """The numbers in the text of a loss or start."""
    name, _, rest = text.partition(":")
    if name not in TEXTS[kind]:
        raise _NoFlag(f"its {kind} {text} is defined elsewhere")
    first = rest.partition(",")[0]
    return arguments_of(kind, text, rest) if "=" in first else {}


def _method(method: Mapping[str, Any], dataset: xr.Dataset, axes: Iterable[str]) -> list[str]:
    """The words of a method, without the numbers that are on axes."""
    name = method["name"]
    if name not in READ:
        raise _NoFlag(f"{name} has no flag")
    for field, usual in WITHOUT_FLAG[name].items():
        if method.get(field, usual) != usual and not (field == "approach" and not axes):
            raise _NoFlag(f"{field}={method[field]!r} has no flag")
    given = {field: method[field] for field in READ[name]}
    if name == "flow" and given["t1"] is None and "time" in dataset.coords:
        given["t1"] = float(dataset["time"].values[-1])
    numbers = {key: value for key, value in method.get("hyperparameters", {}).items() if key not in axes}
    words = [_flag("method", name), *(_flag(key, value) for key, value in given.items() if key not in axes)]
    return [*words, *(_number(key, value) for key, value in numbers.items())]


def _of_axis(axis: str, value: Any, texts: Mapping[str, str], numbers: Mapping[str, dict], axes: list[str]) -> str:
    """The words of one value of an axis."""
    for kind, held in numbers.items():
        if axis in held:
            if len(set(held) & set(axes)) > 1:
                raise _NoFlag(f"several numbers of its {kind} are axes")
            return _flag(kind, described_by(texts[kind].partition(":")[0], held | {axis: value}))
    known = (*MODEL, *READ["flow"], *READ["descent"], "eps", "seed")
    return _flag(axis, value) if axis in known else _number(axis, value)


def _number(name: str, value: Any) -> str:
    """The words of a number of an optimizer."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NoFlag(f"{name}={value!r} has no flag")
    return _flag(name, value) if name in SINGLE else f"--hyperparameters {name} {value!r}"


def _flag(name: str, value: Any) -> str:
    """The words of a flag; none if its value is None."""
    word = "--" + name.replace("_", "-")
    if value is None:
        return ""
    if isinstance(value, bool):
        return word if value else word.replace("--", "--no-")
    if isinstance(value, list | tuple):
        return _joined([word, *(repr(one) for one in value)])
    if not isinstance(value, int | float | str) or str(value).startswith(UNDESCRIBED):
        raise _NoFlag(f"{name}={json.dumps(value)} has no flag")
    return f"{word} {shlex.quote(value) if isinstance(value, str) else repr(value)}"


def values_of(dataset: xr.Dataset, axis: str) -> list[Any]:
    """The values of an axis as Python values; a value of several numbers is a list."""
    if axis in dataset.coords:
        return dataset[axis].values.tolist()
    if f"{axis}_values" not in dataset:
        return list(range(dataset.sizes[axis]))
    whole = axis == "samples_per_class"
    rows = dataset[f"{axis}_values"].values
    return [[int(x) if whole else x for x in row[~np.isnan(row)].tolist()] for row in rows]


def _joined(words: Iterable[str]) -> str:
    return " ".join(filter(None, words))
