"""Programs are few, contain no callbacks, and give the same numbers however they are compiled."""

import threading

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import random_state

import flowcollapse as fc
from flowcollapse.curvature.hessian import hessian_vector_product
from flowcollapse.methods.solvers.lean import lean_diffrax
from flowcollapse.programs import THOROUGH, Program, called, thorough

MODEL = fc.UFM(num_classes=3, samples_per_class=4, num_features=6)


class Compilations:
    """Counts the programs that XLA compiles while it listens."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def during(self, call) -> int:
        before = self.count
        jax.block_until_ready(jax.tree.leaves(call()))
        return self.count - before


@pytest.fixture(scope="module")
def compilations():
    return Compilations()


def lane_values(data):
    return {name: values.values for name, values in data.data_vars.items()}


def test_a_session_compiles_little(compilations):
    """New numbers need no new programs, and code that methods share is compiled once."""
    start, other = random_state(MODEL, 0, 0.1), random_state(MODEL, 1, 0.2)
    decayed = fc.UFM(num_classes=3, samples_per_class=4, num_features=6, weight_decay=1e-9)
    ts = np.linspace(0, 2, 7)

    def simulate(method, start=start, model=MODEL, ts=ts):
        path = fc.simulate(model, start, method, ts)
        return path.metrics, path.end

    assert 3 <= compilations.during(lambda: simulate(fc.Flow(rtol=1e-5))) <= 12  # the run, the metrics, the verdict
    assert compilations.during(lambda: simulate(fc.Flow(rtol=1e-6), other)) == 0
    assert compilations.during(lambda: simulate(fc.Flow(rtol=1e-6), ts=ts / 2)) == 0
    assert compilations.during(lambda: simulate(fc.Flow(rtol=1e-6), model=decayed)) == 0
    assert compilations.during(lambda: simulate(fc.Flow("tsit5", rtol=1e-5))) <= 2
    descent = fc.Descent("sgd", 50, learning_rate=0.05)
    simulate(descent)
    assert compilations.during(lambda: simulate(fc.Descent("sgd", 50, learning_rate=0.06), other)) <= 1


ASKED_OF_A_STATE = {
    "risk": fc.risk,
    "velocity": fc.velocity,
    "metrics": fc.metrics.evaluate,
    "projection": fc.theory.subspace.project,
    "contains": fc.theory.subspace.contains,
    "Hessian": lambda model, state: hessian_vector_product(model, state, state),
    "plateau time": fc.theory.limits.plateau_time,
    "plateau steps": lambda model, state: fc.theory.limits.plateau_steps(model, state, 0.01),
}


@pytest.mark.parametrize("asked", ASKED_OF_A_STATE)
def test_what_is_asked_of_a_state_is_one_program(compilations, asked):
    """Outside a program, JAX would compile each operation separately."""
    model = fc.UFM(num_classes=3, samples_per_class=5, num_features=17)  # sizes that no other test uses
    states = [fc.initial.on_subspace(model, 1e-2, key=jax.random.key(seed)) for seed in range(2)]
    first, second = (compilations.during(lambda one=one: ASKED_OF_A_STATE[asked](model, one)) for one in states)
    assert first <= 2  # the second one converts a number to its type
    assert second == 0


def test_a_sweep_of_another_size_compiles_nothing(compilations):
    def sweep(eps, seeds, **options):
        return lane_values(
            fc.sweep(MODEL, fc.Flow(), eps=eps, seeds=seeds, ts=3, metrics=("risk",), progress=False, **options)
        )

    assert compilations.during(lambda: sweep([0.5], 2, rtol=[1e-3])) >= 1
    assert compilations.during(lambda: sweep([0.25, 0.5], 40, rtol=[1e-3, 1e-4])) == 0
    assert compilations.during(lambda: sweep([1], 3, rtol=[0.01])) == 0


def test_a_called_function_stays_a_call():
    """`called` relies on an experimental attribute; an inlined call would compute its operands many times."""
    x = jnp.ones((4, 4))

    def text(function) -> str:
        return str(jax.jit(lambda x: function(x) @ x).lower(x).compile().as_text())

    assert "call(" not in text(jnp.sin)
    assert "call(" in text(called(jnp.sin))


@pytest.mark.parametrize(
    "method", [fc.Flow(), fc.Flow("tsit5"), fc.Flow("kvaerno5"), fc.Descent("sgd", 9, learning_rate=0.1)]
)
@pytest.mark.parametrize("lanes", [False, True])
def test_programs_hold_no_callbacks(method, lanes):
    """jax 0.10.1 does not cache programs with callbacks, and callbacks stall accelerators."""
    start = random_state(MODEL, 0, 0.1)

    def run(start):
        path = fc.simulate(MODEL, start, method, 5)
        return path.metrics, path.end

    if lanes:
        run, start = jax.vmap(run), jax.tree.map(lambda x: x[None], start)
    text = jax.jit(run).lower(start).as_text()
    assert "while" in text
    assert "callback" not in text


def solve_backwards():
    """A solve whose first step goes backwards, which diffrax refuses at run time."""
    term, solver = dfx.ODETerm(lambda t, y, args: -y), dfx.Tsit5()
    return dfx.diffeqsolve(term, solver, 0.0, 1.0, jnp.asarray(-0.1), jnp.ones(1)).ys


def test_others_keep_the_checks_of_diffrax():
    """Before and after a run, and during it in another thread."""
    fc.simulate(MODEL, random_state(MODEL, 0, 0.1), fc.Flow(), 2, metrics=())
    with pytest.raises(Exception, match="Must have"):
        solve_backwards()
    with lean_diffrax():
        failures = []

        def beside():
            try:
                solve_backwards()
            except Exception as error:
                failures.append(str(error))

        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert "Must have" in failures[0]


def test_a_program_takes_arrays_as_its_input_and_the_rest_as_what_it_is(compilations):
    scaled = Program(lambda x, factor, name: {name: factor * x})
    scaled(jnp.ones(2), 2, "a")
    assert compilations.during(lambda: scaled(jnp.zeros(2), 2, "a")) == 0
    assert scaled(jnp.ones(2), 3, "b", quick=True)["b"].tolist() == [3.0, 3.0]
    assert jax.jit(lambda x: scaled(x, 2, "a", quick=True)["a"])(jnp.ones(2)).tolist() == [2.0, 2.0]
    gradient = jax.grad(lambda x: scaled(x, 2.0, "a", quick=True)["a"].sum())(jnp.ones(2))
    assert gradient.tolist() == [2.0, 2.0]


def test_long_programs_use_wide_vectors_but_flags_of_the_user_count_first(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert thorough() == THOROUGH
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=128")
    assert thorough() == {"xla_backend_optimization_level": 2}
    x = jnp.linspace(0.0, 1.0, 1000)
    wide, usual = (jax.jit(lambda x: jnp.sum(jnp.sin(x) * x), compiler_options=given)(x) for given in (THOROUGH, None))
    np.testing.assert_allclose(wide, usual, rtol=1e-13)
