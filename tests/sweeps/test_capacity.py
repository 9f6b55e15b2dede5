"""As many lanes run at once as the memory of an accelerator holds, by an estimate that the compiler confirms."""

from typing import Any

import jax
import numpy as np
import pytest

import flowcollapse as fc
from flowcollapse.sweeps import capacity
from flowcollapse.sweeps.grid import make_grid
from flowcollapse.sweeps.lane import Plan, common_metrics

SMALL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
MEDIUM = fc.UFM(num_classes=10, samples_per_class=100, num_features=64)
LARGE = fc.UFM(num_classes=1000, samples_per_class=1300, num_features=2048)

MANY = 10**6
GIB = 2**30


class Card:
    """A device as far as the width of a block depends on it."""

    platform = "gpu"

    def __init__(self, memory: int | None):
        self.memory = memory

    def memory_stats(self) -> dict[str, int] | None:
        return None if self.memory is None else {"bytes_limit": self.memory, "bytes_in_use": 0}


def width(model, *cards, lanes=MANY, saves=101) -> int:
    return capacity.block_width(model, cards, lanes, saves=saves)


@pytest.mark.parametrize("model", [SMALL, MEDIUM, LARGE], ids=["small", "medium", "large"])
@pytest.mark.parametrize("memory", [4 * GIB, 16 * GIB, 141 * GIB])
@pytest.mark.parametrize("saves", [0, 101])
def test_a_block_fills_the_memory_it_may_take_and_no_more(model, memory, saves):
    found, room = width(model, Card(memory), saves=saves), capacity.MEMORY_SHARE * memory
    a_lane = capacity.bytes_at_work(model, saves)
    assert found == 1 or found * a_lane <= room
    assert found == capacity.ACCELERATOR_WIDTH or 2 * found * a_lane > room


def test_the_smallest_card_decides():
    assert width(MEDIUM, Card(4 * GIB), Card(80 * GIB)) == width(MEDIUM, Card(4 * GIB), Card(4 * GIB))
    assert width(MEDIUM, Card(4 * GIB)) < width(MEDIUM, Card(80 * GIB))


def test_a_device_that_counts_no_bytes_takes_full_blocks():
    assert width(MEDIUM, Card(None)) == capacity.ACCELERATOR_WIDTH


def test_few_lanes_take_no_full_block():
    assert width(SMALL, Card(80 * GIB), lanes=5) == 8


def test_many_save_times_narrow_a_block():
    assert width(SMALL, Card(16 * GIB), saves=0) > width(SMALL, Card(16 * GIB), saves=60_000)


PLANS: dict[str, tuple[Any, ...]] = {
    "end states": ((3, 3, 15), 1, ()),
    "many times": ((3, 3, 15), 101, ("snc1", "nc4")),
    "many samples": ((2, 50, 3), 101, ("snc1", "nc4")),
    "large states": ((10, 100, 64), 101, ("snc1", "nc4")),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_compiler_plans_less_memory_than_is_expected(name):
    """The compiler tells the bytes of a program without running it; those of lanes are proportional to their number."""
    sizes, saves, names = PLANS[name]
    model = fc.UFM(**dict(zip(("num_classes", "samples_per_class", "num_features"), sizes, strict=True)))
    lanes = 4
    grid = make_grid(model, fc.Flow("tsit5"), [0.1], lanes, {})
    plan = Plan(grid, saves, common_metrics(grid, names), True)
    function, shared = plan.lane({})
    numbers = {"eps": np.full(lanes, 0.1), "seed": np.arange(lanes)}
    program = jax.jit(jax.vmap(function, (None, 0))).lower(shared, numbers).compile()
    planned = program.memory_analysis()
    assert planned is not None
    expected = capacity.bytes_at_work(model, plan.saves)
    assert expected / 16 < planned.temp_size_in_bytes / lanes < expected
