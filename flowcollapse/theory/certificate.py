"""The certificate: every law of the model measured on this machine, with one row per law.

The measured values come from runs of `fc.simulate`, from the field and from products with the Hessian, on at least
three systems per law. The expected values come from the closed forms of `fc.theory`. The laws are in `laws/`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable

import jax

from .._checks import shown
from .._errors import UsageError, nearest
from ..results.provenance import precision, versions
from ..results.views import table
from .laws import LAWS as LAWS, Law
from .laws.lab import Lab

__all__ = ["LAWS", "Certificate", "Row", "verify"]


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one law.

    - `name`, `statement`, `source`: the law, in words and formulas.
    - `measured`, `tolerance`: of the comparison with the largest ratio of the two.
    - `comparisons`: the number of comparisons, which took `seconds`.
    - `message`: the reason why the law could not be measured, if it could not.

    Example:
        >>> import flowcollapse as fc
        >>> row = fc.theory.certificate.Row("a law", "1 = 1", "Peano", 0.0, 1e-12, comparisons=1, seconds=0.1)
        >>> row.passed, row.verdict
        (True, 'pass')
    """

    name: str
    statement: str
    source: str
    measured: float
    tolerance: float
    comparisons: int
    seconds: float
    message: str = ""

    @property
    def passed(self) -> bool:
        return not self.message and self.measured <= self.tolerance

    @property
    def verdict(self) -> str:
        return "pass" if self.passed else "FAIL"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The `rows`, with the `versions`, the `device` and the `precision` they were measured with.

    Example:
        >>> import flowcollapse as fc
        >>> certificate = fc.theory.certificate.Certificate((), {"jax": "0.12.0"}, "cpu", "float64")
        >>> certificate.passed, "rows" in certificate.to_json()
        (True, True)
    """

    rows: tuple[Row, ...]
    versions: dict[str, str]
    device: str
    precision: str

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_json(self) -> str:
        """Rows with verdicts, versions, device and precision. A number that is not finite is null."""
        rows = [
            {
                name: None if value in (math.inf, -math.inf) or value != value else value
                for name, value in vars(row).items()
            }
            | {"verdict": row.verdict}
            for row in self.rows
        ]
        return json.dumps(dataclasses.asdict(self) | {"rows": rows, "passed": self.passed}, indent=1)

    def __repr__(self) -> str:
        return "\n".join([HEAD, *map(line, self.rows), summary(self)])

    def _repr_html_(self) -> str:
        """The same table, for notebooks."""
        head = ("law", "measured", "allowed", "verdict", "statement", "source")
        rows = [
            (row.name, f"{row.measured:.1e}", f"{row.tolerance:.1e}", row.verdict, row.statement, row.source)
            for row in self.rows
        ]
        return table(summary(self), rows, head)


WIDTH = max(map(len, LAWS))
HEAD = f"{'law':<{WIDTH}}  {'measured':>8}  {'allowed':>8}  verdict  statement (source)"


def line(row: Row) -> str:
    """A row of the table, with its message below it."""
    numbers = f"{row.measured:>8.1e}  {row.tolerance:>8.1e}"
    message = f"\n{'':<{WIDTH}}  {row.message}" if row.message else ""
    return f"{row.name:<{WIDTH}}  {numbers}  {row.verdict:<7}  {row.statement} ({row.source}){message}"


def summary(certificate: Certificate) -> str:
    """The last line of the table."""
    failed = [row.name for row in certificate.rows if not row.passed]
    verdict = (
        f"FAIL: {', '.join(failed)}" if failed else f"{len(certificate.rows)} of {len(LAWS)} laws measured, all hold"
    )
    seconds = sum(row.seconds for row in certificate.rows)
    return f"{verdict} ({seconds:.0f} s, {certificate.precision}, {certificate.device})"


def verify(only: str | Iterable[str] | None = None, *, report: Callable[[Row], None] | None = None) -> Certificate:
    """Measure the laws of the model.

    Args:
        only: names of laws, or one name, see `LAWS`; default all of them.
        report: called with each row as soon as it is measured.

    Returns:
        The `Certificate`; its `passed` says whether every law holds. A law that cannot be measured has failed, and its
        row says why.

    Raises:
        UsageError: for an unknown name, or if float64 is not enabled in JAX.

    Source: each row names the source of its law.

    Example:
        >>> import flowcollapse as fc
        >>> fc.theory.certificate.verify(["origin-modes"]).passed
        True
    """
    if report is not None and not callable(report):
        raise UsageError(f"report must be a function of a row, got {shown(report)}: pass one, such as print.")
    try:
        names = list(LAWS) if only is None else [only] if isinstance(only, str) else list(only)
    except TypeError:  # not iterable
        raise UsageError(f"only must be a list of names of laws, got {shown(only)}: choose from LAWS.") from None
    for name in names:
        if not isinstance(name, str) or name not in LAWS:
            cure = nearest(name, LAWS) or f"; choose from {', '.join(LAWS)}."
            raise UsageError(f"law {shown(name)} is not known{cure}")
    if precision() != "float64":
        raise UsageError("verify needs float64 but JAX runs in 32 bits: call fc.enable_x64() first.")
    lab, rows = Lab(), []
    for name in dict.fromkeys(names):
        rows.append(measure(LAWS[name], lab))
        if report is not None:
            report(rows[-1])
    device = jax.devices()[0]
    return Certificate(tuple(rows), versions(), f"{device.platform}: {device.device_kind}", precision())


def measure(law: Law, lab: Lab) -> Row:
    """The row of one law. An exception in the law counts as a failure of that law only."""
    began, message, pairs = time.perf_counter(), "", []
    try:
        pairs = [(float(measured), float(tolerance)) for measured, tolerance in law.compare(lab)]
        message = "" if pairs else "nothing was compared"
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    # NaN counts as infinite: it must fail, whatever the tolerance.
    pairs = [(math.inf if math.isnan(measured) else measured, tolerance) for measured, tolerance in pairs]
    measured, tolerance = max(pairs, key=lambda pair: pair[0] / pair[1], default=(math.nan, math.nan))
    seconds = time.perf_counter() - began
    return Row(law.name, law.statement, law.source, measured, tolerance, len(pairs), seconds, message)
