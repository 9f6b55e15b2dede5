"""The phi functions of exponential integrators, computed with a hundred digits."""

import decimal
import math


def exact_phi(k: int, z: float) -> float:
    """`phi_k(-z)` in a hundred digits: `phi_0(w) = e^w`, `phi_{j+1}(w) = (phi_j(w) - 1/j!)/w`, or the series at 0."""
    with decimal.localcontext() as context:
        context.prec = 100
        w = -decimal.Decimal(z)
        if z < 1e-3:
            value = decimal.Decimal(0)
            for j in reversed(range(20)):
                value = value * w + 1 / decimal.Decimal(math.factorial(j + k))
            return float(value)
        value = w.exp()
        for j in range(k):
            value = (value - 1 / decimal.Decimal(math.factorial(j))) / w
        return float(value)
