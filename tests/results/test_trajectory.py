"""The result of a run: the printed table, and the Dataset for files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
import xarray as xr

import flowcollapse as fc


@pytest.fixture(scope="module")
def path(paper_model) -> fc.Trajectory:
    method = fc.Descent("sgd", 40, learning_rate=0.05)
    start = systems.random_state(paper_model, size=0.1)
    return fc.simulate(paper_model, start, method, [0.0, 0.5, 1.0, 2.0], save_states=True, metrics=("risk", "snc2"))


def test_the_table_tells_what_ran_and_how_it_ended(path):
    table = repr(path)
    for part in ("C=3, N=3, p=15", "descent (sgd, 40 steps)", "float64", "class-mean", "40 taken", path.result.message):
        assert part in table
    assert f"risk {float(path.metrics['risk'][-1]):.4g}" in table


def test_a_dataset_survives_a_file(path, tmp_path):
    """Every number, name and attribute, through netCDF and back."""
    path.to_xarray().to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "run.nc", engine="h5netcdf", decode_times=False) as file:
        np.testing.assert_array_equal(file["time"], path.ts)
        np.testing.assert_array_equal(file["risk"], path.metrics["risk"])
        assert path.states is not None
        np.testing.assert_array_equal(file["H"], path.states.H)
        assert file["H"].dims == ("time", "feature", "sample")
        assert file["W"].dims == ("time", "class", "feature")
        assert fc.Verdict(int(file["verdict"])) == path.result
        assert str(file["verdict"].attrs["flag_meanings"]).split()[int(file["verdict"])] == path.result.name
        assert all(variable.attrs["long_name"] for variable in file.data_vars.values())
        assert file.attrs["coordinates_used"] == "class-mean"
        assert any("jax" in str(value) for value in (*file.attrs, *file.attrs.values()))


def test_a_batch_has_a_lane_in_front(paper_model, run_lanes):
    starts = [systems.random_state(paper_model, seed, size=0.1) for seed in range(4)]
    lanes = run_lanes(jax.tree.map(lambda *xs: jnp.stack(xs), *starts), 1e-6)
    dataset = lanes.to_xarray()
    assert dict(dataset.sizes) == {"lane": 4, "time": 101}
    assert dataset["risk"].dims == dataset["t"].dims == ("lane", "time")
    np.testing.assert_array_equal(dataset["risk"], lanes.metrics["risk"])
    assert "4 plateau" in repr(lanes)

    grid = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), lanes)
    with pytest.raises(fc.UsageError, match=r"lanes \(2, 2\).*flatten"):
        grid.to_xarray()


def test_inside_jit_there_is_nothing_to_write(path):
    def inside(one):
        with pytest.raises(fc.UsageError, match="inside jit"):
            one.to_xarray()
        assert "traced" in repr(one)
        return one.ts

    jax.jit(inside)(path)
