"""Files are the same whether or not xarray writes them."""

import jax
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse._files import write_netcdf

MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)


@pytest.mark.parametrize("save_states", [False, True])
def test_a_run_is_the_same_file_without_xarray(tmp_path, save_states):
    start = fc.initial.sphere(MODEL, 0.1, key=jax.random.key(0))
    method = fc.Descent("sgd", 20, learning_rate=0.02)
    run = fc.simulate(MODEL, start, method, 3, metrics="snc1,risk", save_states=save_states).labelled()
    files = tmp_path / "without.nc", tmp_path / "with.nc"
    write_netcdf(run, files[0])
    write_netcdf(run.to_xarray(), files[1])
    without, beside = (xr.open_dataset(file, engine="h5netcdf") for file in files)
    assert without.identical(beside)
    for name in without.variables:  # types, chunks, compression, fill value
        about, wanted = (dataset[name].encoding | {"source": ""} for dataset in (without, beside))
        assert repr(about) == repr(wanted)
