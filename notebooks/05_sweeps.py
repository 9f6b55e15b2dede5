# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweeps: scales, samples and seeds, kept in a store
#
# A sweep runs one method from many starts: over scales eps, random seeds, and any other number by name. It uses all
# devices (here all CPU cores), writes finished lanes into a store while it runs, and resumes from the store if it was
# stopped. The start of each lane depends only on its seed and its eps.

# %%
import tempfile
from pathlib import Path

import numpy as np

import flowcollapse as fc

fc.enable_x64()
fc.use_cpu_cores()
store = Path(tempfile.mkdtemp()) / "eps-and-samples.zarr"
model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
options = {
    "eps": [1.0, 1e-1, 1e-2, 1e-3],
    "samples_per_class": [3, 30, 300],
    "seeds": 32,
    "metrics": ["snc1", "snc2", "snc3", "distance", "risk"],
}

# %% [markdown]
# The number of samples changes the shapes of the arrays, so each of its values is compiled once; all other axes share a
# program. In class-mean columns, the three values cost about the same.

# %%
grid = fc.sweep(model, fc.Flow(), store=store, progress=False, **options)
print({name: grid.attrs[name] for name in ("lanes_computed", "lanes_per_second", "lane_efficiency")})
grid

# %% [markdown]
# The same call again finds all results in the store. `fc.open_sweep(store)` opens a store at any time, even while the
# sweep is running: lanes that have not run are missing (NaN, or -1 for integers). Plain `xarray.open_zarr` also works.

# %%
again = fc.sweep(model, fc.Flow(), store=store, progress=False, **options)
print("computed the second time:", again.attrs["lanes_computed"], "lanes")
data = fc.open_sweep(store).load()
data["snc1"].isel(time=-1).median("seed").to_pandas()

# %% [markdown]
# Draw pictures from the store, either with `flowcollapse plot eps-and-samples.zarr` on the command line or here:

# %%
_ = fc.plot.sweep(data, "snc3")

# %% [markdown]
# ## A law
# At the plateau each error is a power of eps, the same for every number of samples: 2 for SNC1, 1 for SNC2, SNC3 and
# the distance to S, 4 for the risk. The powers are fitted at eps = 1e-2 and below:

# %%
powers = {"snc1": 2, "snc2": 1, "snc3": 1, "distance": 1, "risk": 4}
end = data[list(powers)].isel(time=-1).median("seed").sel(eps=[1e-2, 1e-3])
fitted = np.log10(end.sel(eps=1e-2) / end.sel(eps=1e-3))
print(fitted.to_pandas().round(4))

# %%
assert again.attrs["lanes_computed"] == 0
assert (data["verdict"] == fc.Verdict.plateau).all()
assert all(float(np.abs(fitted[name] - power).max()) < 0.02 for name, power in powers.items())
