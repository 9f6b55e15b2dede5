"""One case of `start.py` in a separate process: the cost of its steps, and the number of programs XLA compiled."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fresh_process import emit, spec_of_this_worker

T1, RTOL, SAVES = 13.76, 1e-8, 101
"""The peers run to the plateau time of our start."""

events: Counter[str] = Counter()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Measure the body."""
    before, wall, cpu = events.copy(), time.perf_counter(), time.process_time()
    yield
    new = events - before
    row = {"step": name, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    emit(row | {"programs": new["programs"], "compiled": new["programs"] - new["loaded"]})


def count_programs() -> None:
    """Count the programs that JAX hands to XLA, and how many of them come from the cache."""
    import jax.monitoring

    def heard(name: str, *_: Any, **__: Any) -> None:
        events["programs"] += name == "/jax/core/compile/backend_compile_duration"
        events["loaded"] += name == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(heard)
    jax.monitoring.register_event_duration_secs_listener(heard)


def ours() -> Any:
    """The package, a model, and a function from a seed to a start."""
    with step("import"):
        import jax

        import flowcollapse as fc

        fc.simulate, fc.UFM, fc.Flow, fc.initial  # noqa: B018  loads them
    count_programs()
    fc.enable_compilation_cache()
    fc.enable_x64()
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
    return fc, model, lambda seed: fc.initial.sphere(model, 0.1, key=jax.random.key(seed))


def twice(name: str, run: Callable[[int], Any]) -> None:
    """Measure a call, and the same call with another start."""
    import jax

    with step(f"first {name}"):
        jax.block_until_ready(run(0))
    with step(f"second {name}"):
        jax.block_until_ready(run(1))


def simulate() -> None:
    fc, model, start = ours()
    with step("start"):
        states = [start(0), start(1)]
    paths = []
    twice("simulate", lambda seed: paths.append(fc.simulate(model, states[seed], fc.Flow())) or paths[-1].t_end)
    with step("print"):
        str(paths[0])
    with step("final.H"):
        paths[0].final.H.block_until_ready()


def descent() -> None:
    fc, model, start = ours()
    twice("Descent", lambda seed: fc.simulate(model, start(seed), fc.Descent("sgd", 340, learning_rate=0.05)).t_end)


def sweep() -> None:
    fc, model, _ = ours()
    twice(
        "sweep of 16", lambda i: fc.sweep(model, fc.Flow(), eps=[0.1 / (1 + i)], seeds=16, progress=False).snc1.values
    )


def growing() -> None:
    fc, model, _ = ours()
    for seeds in (256, 2048):
        with step(f"sweep of {seeds}"):
            fc.sweep(model, fc.Flow(), eps=[0.1], seeds=seeds, progress=False)


def predict() -> None:
    fc, model, start = ours()
    twice("predict", lambda seed: fc.predict(model, start(seed))["snc1"].values)


def grad() -> None:
    fc, model, _ = ours()
    import jax

    def risk(eps: Any, seed: int) -> Any:
        first = fc.initial.sphere(model, eps, key=jax.random.key(seed))
        return fc.simulate(model, first, fc.Flow(t1=5.0), 2, metrics=["risk"]).metrics["risk"][-1]

    twice("grad of the final risk", lambda seed: jax.grad(risk)(0.1, seed))


def diffrax() -> None:
    """As in its documentation: Tsit5, a PID controller for the steps, and saved states."""
    with step("import"):
        import diffrax as dfx
        import jax
        import jax.numpy as jnp
    count_programs()
    jax.config.update("jax_enable_x64", True)
    target = jnp.repeat(jnp.eye(3), 3, axis=1)

    def field(t: Any, state: Any, args: Any) -> Any:
        H, W, b = state
        residual = W @ H + b[:, None] - target
        return -W.T @ residual, -residual @ H.T, -residual.sum(1)

    @jax.jit
    def solve(y0: Any) -> Any:
        saves = dfx.SaveAt(ts=jnp.linspace(0, T1, SAVES))
        steps = dfx.PIDController(rtol=RTOL, atol=RTOL)
        return dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, T1, None, y0, saveat=saves, stepsize_controller=steps
        )

    def run(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed))
        H, W = (jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True))
        return solve((0.1 * H / jnp.linalg.norm(H), 0.1 * W / jnp.linalg.norm(W), jnp.zeros(3))).ys

    twice("diffeqsolve", run)


SHAPES = ((15, 9), (3, 15))


def scipy() -> None:
    with step("import"):
        import numpy as np
        from scipy.integrate import solve_ivp
    target = np.repeat(np.eye(3), 3, axis=1)

    def field(t: float, y: Any) -> Any:
        H, W, b = y[:135].reshape(15, 9), y[135:180].reshape(3, 15), y[180:]
        residual = W @ H + b[:, None] - target
        return -np.concatenate([(W.T @ residual).ravel(), (residual @ H.T).ravel(), residual.sum(1)])

    def run(seed: int) -> Any:
        random = np.random.default_rng(seed)
        H, W = (random.normal(size=shape) for shape in SHAPES)
        y0 = np.concatenate([0.1 * H.ravel() / np.linalg.norm(H), 0.1 * W.ravel() / np.linalg.norm(W), np.zeros(3)])
        return solve_ivp(field, (0, T1), y0, "DOP853", np.linspace(0, T1, SAVES), rtol=RTOL, atol=RTOL)

    for name, seed in (("first", 0), ("second", 1)):
        with step(f"{name} solve_ivp"):
            run(seed)


CASES = {f.__name__: f for f in (simulate, descent, sweep, growing, predict, grad, diffrax, scipy)}

if __name__ == "__main__":
    CASES[spec_of_this_worker()["case"]]()
