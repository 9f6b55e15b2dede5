"""Settings of the whole suite: float64, and every shape that the package's signatures promise checked at run time."""

import jax
import jaxtyping
import pytest

# Before anything imports the package: a module that is loaded already would stay unchecked.
jaxtyping.install_import_hook("flowcollapse", "beartype.beartype")

import flowcollapse as fc  # noqa: E402

fc.enable_x64()


@pytest.fixture
def thirty_two_bits():
    """JAX without float64, for one test."""
    fc.enable_x64(False)
    yield
    fc.enable_x64(True)


@pytest.fixture(scope="session")
def paper_model() -> fc.UFM:
    """The sizes of the paper's figures."""
    return fc.UFM(num_classes=3, samples_per_class=3, num_features=15)


@pytest.fixture(scope="session")
def key():
    """The one key that all random starts are derived from."""
    return jax.random.key(20_11_11619)
