"""A proof, from the program of its update, that an optimizer takes the same path in all isometric coordinates.

Class means and compressed rows replace `(W, X, b)` by `(W R, R^T X Q, b)` with orthonormal columns in R and Q. A run
in these coordinates equals the run on the samples if and only if every update commutes with these maps. This holds if
an update is a sum of gradients, parameters and earlier updates of the same part, times numbers that no such map
changes: norms and inner products over a whole part, the loss, step counts, and anything computed from them.

The update is traced for the shapes of the samples and for the reduced shapes. Both programs must be the same except for
these shapes, and every intermediate result gets a kind: unchanged by the maps, a vector of one part, or unknown. If
the update of each part is a vector of this part, the optimizer commutes: in every step of a run of any length, at every
magnitude and for all values of its numbers. An optimizer without such a proof counts as one that does not commute
(derived here).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from .._checks import is_traced
from ..model.problem import Point
from .transformation import OnPoints, on_points


class Kind(NamedTuple):
    """How a result changes with the coordinates; vectors and their squares belong to a part of the point."""

    name: str
    part: str | None = None


SAME = Kind("same")
"""Unchanged by the maps."""

ZERO = Kind("zero")
"""Zero everywhere, in any shape."""

EVEN = Kind("even")
"""One number that is the same in all coordinates, repeated in any shape."""

UNKNOWN = Kind("unknown")

EVENLY = {
    *("add", "sub", "mul", "div", "max", "min", "rem", "pow", "integer_pow", "square", "sqrt", "rsqrt", "cbrt", "neg"),
    *("abs", "sign", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "floor", "ceil", "round", "erf"),
    *("gt", "lt", "ge", "le", "eq", "ne", "and", "or", "not", "xor", "is_finite", "select_n", "convert_element_type"),
    *("copy", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "clamp", "add_any"),
}
"""Operations whose results have equal entries if all their arguments have equal entries."""

CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "named_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
"""Operations that run a program on all their arguments."""

KEPT = ("neg", "copy", "real", "stop_gradient", "optimization_barrier")
"""Operations that map a vector to a vector."""

ROUNDS = 50
"""The most rounds of a loop. Its kinds settle in fewer, because each of them changes at most twice."""


def obstacle(optimizer: Any, label: str, samples: Point, reduced: Point) -> str | None:
    """The reason why an optimizer may take different paths in two coordinates, or None if the paths are proved equal.

    Args:
        optimizer: the optax optimizer.
        label: its name in messages.
        samples, reduced: a point in each of the two coordinates, or its shapes.

    Source: derived here; see the module.
    """
    both = [on_points(optimizer, label, point) for point in (samples, reduced)]
    if any("value_fn" in one.uses for one in both):
        return "its steps call the loss"
    try:
        return _obstacle(both, (samples, reduced))
    except _Different as difference:
        return str(difference)


class _Different(Exception):
    """The programs are not the same."""


def _obstacle(both: Sequence[OnPoints], points: Sequence[Point]) -> str | None:
    parts = [Kind("vector", "W"), Kind("vector", "X"), SAME]
    begin = [one.init_program(point) for one, point in zip(both, points, strict=True)]
    state = _walk_closed(begin, parts)
    programs = [one.update_program(point) for one, point in zip(both, points, strict=True)]
    for _ in range(ROUNDS):
        found = _walk_closed(programs, [*parts, *state, *parts, SAME])
        updates, after = found[:3], found[3:]
        pairs = _pairs([program.jaxpr.outvars[3:] for program in programs])
        joined = [_join(a, b, _alike(*pair)) for a, b, pair in zip(state, after, pairs, strict=True)]
        if joined == state:
            break
        state = joined
    else:
        return "its state does not settle"
    for name, wanted, kind in zip(("W", "H"), parts, updates, strict=False):
        if kind not in (wanted, ZERO):
            return f"its step in {name} looks at single entries, or at the number of them"
    if updates[2] not in (SAME, ZERO, EVEN):
        return "its step in b depends on the coordinates of W or H"
    return None


def _pairs(lists: Sequence[Sequence[Any]]) -> list[tuple[Any, Any]]:
    if len(lists[0]) != len(lists[1]):
        raise _Different("its program depends on the shapes")
    return list(zip(*lists, strict=True))


def _alike(one: Any, other: Any) -> bool:
    """Whether two variables of the programs have the same shape and dtype."""
    return one.aval.shape == other.aval.shape and one.aval.dtype == other.aval.dtype


def _constant(one: Any, other: Any) -> Kind:
    """The kind of a constant that both programs hold."""
    opaque = jnp.issubdtype(getattr(one, "dtype", np.float64), jax.dtypes.prng_key)
    if opaque or is_traced(one) or is_traced(other):
        return SAME if one is other else UNKNOWN
    a, b = np.asarray(one), np.asarray(other)
    if a.size and b.size and not a.any() and not b.any():
        return ZERO
    if a.dtype != b.dtype or a.shape != b.shape:
        return UNKNOWN
    return SAME if np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.inexact)) else UNKNOWN


def _walk_closed(programs: Sequence[Any], kinds: Sequence[Kind]) -> list[Kind]:
    constants = [_constant(*pair) for pair in _pairs([program.consts for program in programs])]
    return _walk([program.jaxpr for program in programs], [*constants, *kinds])


def _walk(programs: Sequence[Any], kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds of the results of two programs that must be the same except for shapes."""
    known: dict[Any, Kind] = {}
    inputs = _pairs([[*program.constvars, *program.invars] for program in programs])
    for (one, _), kind in zip(inputs, kinds, strict=True):
        known[one] = kind

    def of(one: Any, other: Any) -> Kind:
        literal = [isinstance(variable, Literal) for variable in (one, other)]
        if any(literal):
            return _constant(one.val, other.val) if all(literal) else UNKNOWN
        return known[one]

    for one, other in _pairs([program.eqns for program in programs]):
        if one.primitive is not other.primitive:
            raise _Different("its program depends on the shapes")
        before = [of(*pair) for pair in _pairs([one.invars, other.invars])]
        after = _kinds(one, other, before)
        for variable, kind in zip(one.outvars, after, strict=True):
            known[variable] = kind
    return [of(*pair) for pair in _pairs([program.outvars for program in programs])]


def _kinds(one: Any, other: Any, kinds: list[Kind]) -> list[Kind]:
    """The kinds of the results of one operation."""
    name, count = one.primitive.name, len(one.outvars)
    alike = all(_alike(*pair) for pair in _pairs([[*e.invars, *e.outvars] for e in (one, other)]))
    if name in LOOPS:
        return LOOPS[name](one, other, kinds)
    inner = next((key for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in one.params), None)
    if name in CALLS and inner is not None:
        programs = [equation.params[inner] for equation in (one, other)]
        if all(hasattr(program, "consts") for program in programs):
            return _walk_closed(programs, kinds)
        return _walk(programs, kinds)
    if all(kind in (SAME, ZERO, EVEN) for kind in kinds):
        kind = _even(one, kinds)
        if kind is None:
            kind = SAME if alike and _same_options(one, other) else UNKNOWN
        return [kind] * count
    if UNKNOWN in kinds or count != 1:
        return kinds if name == "optimization_barrier" else [UNKNOWN] * count
    return [_of_vectors(one, kinds)]


def _even(equation: Any, kinds: list[Kind]) -> Kind | None:
    """The kind of a result with equal entries, or None if the entries may differ."""
    name = equation.primitive.name
    if name == "reduce_sum" and kinds == [ZERO]:
        return ZERO
    pairs = zip(kinds, equation.invars, strict=True)
    equal = all(kind in (ZERO, EVEN) or variable.aval.shape == () for kind, variable in pairs)
    if name not in EVENLY or not equal:
        return None
    zeros = [kind == ZERO for kind in kinds]
    if name in ("mul", "integer_pow", "square") and any(zeros) and equation.params.get("y", 1) > 0:
        return ZERO
    if name == "div" and zeros[0] and not zeros[1]:
        return ZERO
    keeps = ("add", "sub", "add_any", "neg", "abs", "copy", "sqrt", "convert_element_type", "broadcast_in_dim")
    if all(zeros) and name in (*keeps, "reshape", "squeeze", "expand_dims", "transpose"):
        return ZERO
    if name == "select_n" and all(zeros[1:]):
        return ZERO
    # A single number that is the same in all coordinates is `SAME`, which is stronger than `EVEN`.
    return SAME if equation.outvars[0].aval.shape == () else EVEN


def _of_vectors(equation: Any, kinds: list[Kind]) -> Kind:
    """The kind of the single result of an operation on at least one vector."""
    name, options = equation.primitive.name, equation.params
    first, last = kinds[0], kinds[-1]
    numbers = [
        kind in (ZERO, EVEN) or (kind == SAME and variable.aval.shape == ())
        for kind, variable in zip(kinds, equation.invars, strict=True)
    ]
    shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    whole = tuple(options.get("axes", ())) == tuple(range(len(shapes[0])))
    if name in KEPT or (name == "integer_pow" and options["y"] == 1):
        return first
    if name == "convert_element_type":
        old, new = (variable.aval.dtype for variable in (equation.invars[0], equation.outvars[0]))
        # Rounding entries to fewer digits gives different results in different coordinates.
        return first if new in (np.float32, np.float64) and new.itemsize >= old.itemsize else UNKNOWN
    if name in ("add", "sub", "add_any"):
        return _join(first, last, alike=False)
    if name == "select_n":
        cases = kinds[1]
        for kind in kinds[2:]:
            cases = _join(cases, kind, alike=False)
        return cases if numbers[0] else UNKNOWN
    if name == "mul" and any(numbers):
        return last if numbers[0] else first
    if name == "div" and numbers[1]:
        return first
    if (name == "mul" and first == last) or name == "square" or (name == "integer_pow" and options["y"] == 2):
        return Kind("square", f"{first.name} {first.part}") if first.name in ("vector", "flat") else UNKNOWN
    if name == "reduce_sum" and first.name == "square" and whole:
        return SAME
    if name == "dot_general" and first == last and first.name in ("vector", "flat"):
        contracted, batched = options["dimension_numbers"]
        every = tuple(range(len(shapes[0])))
        return SAME if all(tuple(axes) == every for axes in contracted) and not any(map(len, batched)) else UNKNOWN
    if (
        name == "reshape"
        and first.name in ("vector", "flat")
        and len(shapes[-1]) == 1
        and options.get("dimensions") is None
    ):
        return Kind("flat", first.part)
    if name in ("reshape", "broadcast_in_dim") and shapes[0] == shapes[-1]:
        return first
    if name == "is_finite" and first.name in ("vector", "flat"):
        return Kind("finite", first.part)
    if name == "reduce_and" and first.name == "finite" and whole:
        return SAME
    return UNKNOWN


def _join(one: Kind, other: Kind, alike: bool) -> Kind:
    """The kind of a result that is either of two results, or their sum.

    `alike` means that the shape of the result is the same in all coordinates.
    """
    if one == other:
        return one
    if ZERO in (one, other):
        rest = one if other == ZERO else other
        return rest if rest != SAME or alike else UNKNOWN
    return SAME if alike and {one, other} == {SAME, EVEN} else UNKNOWN


def _same_options(one: Any, other: Any) -> bool:
    try:
        return bool(one.params == other.params)
    except (TypeError, ValueError):
        return False


def _cond(one: Any, other: Any, kinds: list[Kind]) -> list[Kind]:
    branches = _pairs([equation.params["branches"] for equation in (one, other)])
    found = [_walk_closed(branch, kinds[1:]) for branch in branches]
    alike = [_alike(*pair) for pair in _pairs([one.outvars, other.outvars])]
    joined = found[0]
    for kinds_of_branch in found[1:]:
        joined = [_join(a, b, same) for a, b, same in zip(joined, kinds_of_branch, alike, strict=True)]
    return joined if kinds[0] in (SAME, ZERO) else [UNKNOWN] * len(joined)


def _settled(step: Callable[[list[Kind]], list[Kind]], carry: list[Kind], alike: list[bool]) -> list[Kind]:
    """The kinds of a loop's carry that hold before and after every iteration."""
    for _ in range(ROUNDS):
        joined = [_join(a, b, same) for a, b, same in zip(carry, step(carry), alike, strict=True)]
        if joined == carry:
            return carry
        carry = joined
    return [UNKNOWN] * len(carry)


def _while(one: Any, other: Any, kinds: list[Kind]) -> list[Kind]:
    conditions, bodies = ([e.params[key] for e in (one, other)] for key in ("cond_jaxpr", "body_jaxpr"))
    first, second = one.params["cond_nconsts"], one.params["body_nconsts"]
    of_condition, of_body, carry = kinds[:first], kinds[first : first + second], kinds[first + second :]
    alike = [_alike(*pair) for pair in _pairs([one.outvars, other.outvars])]
    carry = _settled(lambda now: _walk_closed(bodies, [*of_body, *now]), carry, alike)
    goes_on = _walk_closed(conditions, [*of_condition, *carry])
    return carry if goes_on[0] in (SAME, ZERO) else [UNKNOWN] * len(carry)


def _scan(one: Any, other: Any, kinds: list[Kind]) -> list[Kind]:
    programs = [equation.params["jaxpr"] for equation in (one, other)]
    constants, carries = one.params["num_consts"], one.params["num_carry"]
    pairs = _pairs([one.invars, other.invars])[constants + carries :]
    slices = [
        SAME if kind in (SAME, EVEN, ZERO) and _alike(*pair) else UNKNOWN
        for kind, pair in zip(kinds[constants + carries :], pairs, strict=True)
    ]
    alike = [_alike(*pair) for pair in _pairs([one.outvars, other.outvars])]
    if any(one.params[key] != other.params[key] for key in ("length", "reverse")):
        return [UNKNOWN] * len(alike)

    def turn(carry: list[Kind]) -> list[Kind]:
        return _walk_closed(programs, [*kinds[:constants], *carry, *slices])

    carry = _settled(lambda now: turn(now)[:carries], kinds[constants : constants + carries], alike[:carries])
    stacked = [
        SAME if kind in (SAME, EVEN, ZERO) and same else UNKNOWN
        for kind, same in zip(turn(carry)[carries:], alike[carries:], strict=True)
    ]
    return [*carry, *stacked]


LOOPS: dict[str, Callable[[Any, Any, list[Kind]], list[Kind]]] = {"cond": _cond, "while": _while, "scan": _scan}
