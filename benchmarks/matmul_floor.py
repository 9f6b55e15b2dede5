"""The minimum cost of a right-hand side of the flow: its three matrix products.

`W X`, `W^T G` and `G X^T` with `W` C x q, `X` q x n and `G` C x n take `6 C q n` operations; everything else in the
flow is smaller by a factor of C or q.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peer_batch import one_blas_thread

from flowcollapse.methods.stiff_part import mean_residual_field
from flowcollapse.model.problem import Problem


class Floor:
    """Times the products and the whole right-hand side, in jax and in NumPy, with the threads of this process.

    Call `measure` between the runs it is compared with, so that both see the same load on the machine. The smallest
    time of each counts.
    """

    def __init__(self, problem: Problem, W, X, e) -> None:
        self.C, self.q, self.n = *W.shape, X.shape[1]
        G = W @ X
        products = jax.jit(lambda W, X, G: (W @ X, W.T @ G, G @ X.T))
        field = jax.jit(lambda problem, W, X, e: mean_residual_field(problem, W, X, e))
        arrays = [np.asarray(array) for array in (W, X, G)]
        results = [np.empty(shape) for shape in (G.shape, X.shape, W.shape)]

        def numpy_products() -> None:
            W, X, G = arrays
            np.matmul(W, X, out=results[0])
            np.matmul(W.T, G, out=results[1])
            np.matmul(G, X.T, out=results[2])

        with jax.default_matmul_precision("highest"):
            jax.block_until_ready((products(W, X, G), field(problem, W, X, e)))
        self.ways: dict[str, Callable[[], Any]] = {
            "rhs": lambda: jax.block_until_ready(field(problem, W, X, e)),
            "jax": lambda: jax.block_until_ready(products(W, X, G)),
            "blas": numpy_products,
            "blas_one_thread": numpy_products,
        }
        self.seconds = {name: (float("inf"), float("inf")) for name in self.ways}

    def measure(self, at_least_s: float) -> None:
        """Run each variant for this long and keep the smallest wall and CPU seconds per call."""
        for name, call in self.ways.items():
            with one_blas_thread() if name == "blas_one_thread" else nullcontext():
                wall, cpu, calls = time.perf_counter(), time.process_time(), 0
                while calls == 0 or time.perf_counter() - wall < at_least_s:
                    call()
                    calls += 1
                wall_s, cpu_s = (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls
            least_wall, least_cpu = self.seconds[name]
            self.seconds[name] = min(wall_s, least_wall), min(cpu_s, least_cpu)
        time.sleep(0.1)  # BLAS threads spin for a while, which would count against the next measurement

    def row(self, evaluations: int, wall_s: float, cpu_s: float) -> dict[str, Any]:
        """The floor of a run with this many evaluations, and the ratio of the run to it."""
        operations = 6 * self.C * self.q * self.n
        numbers = 3 * (self.C * self.q + self.q * self.n + self.C * self.n)
        row: dict[str, Any] = {
            "q": self.q,
            "n": self.n,
            "operations_per_rhs": operations,
            "bytes_per_rhs": numbers * jnp.result_type(float).itemsize,
            "operations_per_byte": operations / numbers / jnp.result_type(float).itemsize,
        }
        for name, (wall, cpu) in self.seconds.items():
            row |= {f"{name}_wall_s": wall, f"{name}_cpu_s": cpu, f"{name}_gflops": operations / wall / 1e9}
        for name in ("jax", "blas", "blas_one_thread"):
            wall, cpu = self.seconds[name]
            row |= {
                f"floor_{name}_cpu_s": evaluations * cpu,
                f"cpu_over_floor_{name}": cpu_s / (evaluations * cpu),
                f"wall_over_floor_{name}": wall_s / (evaluations * wall),
            }
        return row
