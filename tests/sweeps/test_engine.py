"""Lanes in blocks, on one device or several, give the same results as lanes one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowcollapse import UFM, UsageError
from flowcollapse._linalg import algebra
from flowcollapse.model.coordinates import state_size
from flowcollapse.sweeps import capacity, engine
from flowcollapse.sweeps.engine import Engine


def compiled() -> int:
    """The number of programs that the engine has compiled."""
    return engine._program("cpu")._cache_size()


def sums_and_products(shared, lane):
    a, b = lane
    return {"sum": a + b + shared, "product": a * b[0]}


@pytest.mark.parametrize("lanes", [1, 8, 37])
@pytest.mark.parametrize(("devices", "width"), [(1, 1), (1, 8), (2, 3)])
def test_lanes_in_blocks_are_lanes_one_by_one(lanes, devices, width):
    x, y = np.arange(float(lanes)), np.arange(2.0 * lanes).reshape(lanes, 2)
    run = Engine(sums_and_products, width=width, devices=jax.local_devices()[:devices], shared=np.float64(0.5))
    found = run.submit((x, y)).result()
    np.testing.assert_array_equal(found["sum"], x[:, None] + y + 0.5)
    np.testing.assert_array_equal(found["product"], x * y[:, 0])


def test_more_lanes_than_fit_come_part_after_part():
    x, y = np.arange(20.0), np.arange(40.0).reshape(20, 2)
    found = Engine(sums_and_products, width=2, shared=np.float64(0), blocks=2).submit((x, y)).result()
    np.testing.assert_array_equal(found["product"], x * y[:, 0])


def test_one_program_for_any_number_of_lanes():
    def double(shared, x):
        return 2 * x

    before = compiled()
    run = Engine(double, width=4)
    for lanes in (32, 5, 17):
        assert run.submit(np.arange(lanes)).result().tolist() == (2 * np.arange(lanes)).tolist()
    assert compiled() == before + 1


def test_lockstep_pays_for_the_slowest_of_each_block():
    submitted = Engine(lambda _, x: x, width=2).submit(np.arange(5))
    assert submitted.lockstep(np.array([3, 5, 2, 2, 7])) == (19, 2 * 5 + 2 * 2 + 2 * 7)


def test_blocks_are_narrow_where_states_are_large():
    sizes = ((3, 3, 15), (6, 8, 24), (100, 500, 512))
    small, medium, large = (UFM(num_classes=c, samples_per_class=n, num_features=p) for c, n, p in sizes)
    devices = jax.local_devices()
    assert capacity.block_width(small, devices, lanes=1000) == capacity.CPU_WIDTH
    assert capacity.block_width(small, devices, lanes=6) == capacity.CPU_WIDTH  # the same program
    assert capacity.block_width(small, devices, lanes=6, factorises=True) == 4
    assert capacity.block_width(medium, devices, lanes=6) == 4  # both devices have work
    assert 1 < capacity.block_width(medium, devices, lanes=1000) < capacity.CPU_WIDTH
    assert capacity.block_width(large, devices, lanes=1000) == 1
    assert state_size(medium) == state_size(
        UFM(num_classes=6, samples_per_class=10**6, num_features=24)
    )  # in class-mean columns


@pytest.mark.parametrize("devices", [0, -1, 99, [], ["cpu"], True])
def test_devices_that_are_not_there_are_refused(devices):
    with pytest.raises(UsageError, match="devices"):
        engine.chosen_devices(devices)


def test_devices_by_number_and_by_list():
    local = jax.local_devices()
    assert engine.chosen_devices(None) == local
    assert engine.chosen_devices(1) == local[:1]
    assert engine.chosen_devices(local[1:]) == local[1:]


FACTORISATIONS = {
    "qr": lambda A: algebra.qr(A)[1],
    "svd": lambda A: algebra.svd(A)[1],
    "singular values": algebra.singular_values,
    "pinv": algebra.pinv,
    "eigh": lambda A: algebra.eigh(A.T @ A)[0],
    "eigvalsh": lambda A: algebra.eigvalsh(A.T @ A),
    "lu": lambda A: algebra.lu_solve(algebra.lu_factor(A.T @ A), A[0]),
    "lu transposed": lambda A: algebra.lu_solve_transposed(algebra.lu_factor(A.T @ A), A[0]),
}


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_factorisations_in_blocks_are_those_of_each_matrix(name):
    factorise = FACTORISATIONS[name]
    matrices = np.random.default_rng(0).normal(size=(12, 5, 3))
    found = Engine(lambda _, A: factorise(A), width=3).submit(matrices).result()
    np.testing.assert_allclose(found, [factorise(jnp.asarray(A)) for A in matrices], rtol=1e-9)


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_derivatives_of_factorisations_in_blocks(name):
    factorise = FACTORISATIONS[name]
    matrices, direction = np.random.default_rng(1).normal(size=(2, 4, 5, 3))

    def total(matrices):
        return jnp.sum(jnp.abs(jax.vmap(factorise)(matrices)))

    steps = [total(matrices + sign * 1e-6 * direction) for sign in (1, -1)]
    slope = jnp.sum(jax.jit(jax.grad(total))(matrices) * direction)
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / 2e-6, rtol=1e-6)


def test_factorisations_on_all_devices_end():
    """As batches handed to LAPACK, they would deadlock if there are no more threads than devices."""
    matrices = np.random.default_rng(0).normal(size=(1024, 60, 30))
    found = Engine(lambda _, A: jnp.abs(algebra.qr(A)[1]).sum(), width=16).submit(matrices).result()
    np.testing.assert_allclose(found, [np.abs(np.linalg.qr(A)[1]).sum() for A in matrices], rtol=1e-10)
