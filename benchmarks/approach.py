"""Steps of the default flow to its plateau under typical weight decays, and the explicit steps it would need.

    python benchmarks/approach.py
    python benchmarks/approach.py --quick

Steps include rejected ones; they are explicit up to the escape and implicit after it. Explicit steps are bounded by
their stability at rest, `6 / (2 sqrt N + lam)`, so they would need many more steps to reach the same end.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowcollapse as fc

DECAYS = (
    *((lam, lam, lam) for lam in (1e-5, 1e-4, 5e-4, 1e-2, 1e-1)),
    (5e-4, 5e-4, 0.0),
    (1e-3, 1e-5, 0.0),
    (1e-5, 1e-3, 1e-4),
    (1e-2, 1e-4, 1e-1),
    (1e-3, 0.0, 0.0),
    (0.0, 0.0, 1e-3),
)
"""The decays of W, H and b."""

# C, N, p, eps.
SIZES = ((3, 1, 4, 0.1), (10, 100, 64, 0.1), (3, 33_333, 4, 0.1), (3, 33_333, 4, 1.0))


def runs(C: int, N: int, p: int, eps: float, decays) -> fc.Trajectory:
    """One run for each decay."""

    def run(decay) -> fc.Trajectory:
        model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p, weight_decay=decay)
        return fc.simulate(model, fc.initial.sphere(model, eps, key=jax.random.key(1)), fc.Flow(), 2, metrics=("risk",))

    return jax.jit(lambda all_of_them: jax.lax.map(run, all_of_them))(jnp.asarray(decays))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size and two decays")
    options = parser.parse_args()
    fc.enable_x64()
    sizes, decays = (SIZES[:1], DECAYS[1:3]) if options.quick else (SIZES, DECAYS)
    found: list[Any] = [runs(*size, decays) for size in sizes]
    names = [f"C = {C}, N = {N:,}, p = {p}, eps = {eps:g}" for C, N, p, eps in sizes]
    print(f"| decay of W, H, b | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for lane, decay in enumerate(decays):
        cells = []
        for (_, N, _, _), path in zip(sizes, found, strict=True):
            steps = int(path.stats["accepted"][lane] + path.stats["rejected"][lane])
            explicit = float(path.t_end[lane]) * (2 * np.sqrt(N) + max(decay)) / 6
            told = "" if int(path.code[lane]) == fc.Verdict.plateau else f", {fc.Verdict(int(path.code[lane])).name}"
            cells.append(f"{steps} ({explicit:.1g}{told})")
        print(f"| {', '.join(f'{lam:g}' for lam in decay)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
