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
# # Theory against simulation
#
# Much about the model is known in closed form: where a small start ends, the whole curve that leads there, the slow
# drift that follows, and the curvature at every critical point. Here each prediction is drawn on the same axes as a
# run, without fitting anything.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import flowcollapse as fc

fc.enable_x64()
fc.use_cpu_cores()
model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
start = fc.initial.sphere(model, eps=1e-2, key=jax.random.key(0))

# %% [markdown]
# ## A learning curve, before the run
# `fc.predict` takes only the start and returns the same Dataset as a simulation: the same names and the same times.

# %%
path = fc.simulate(model, start, fc.Flow(rtol=1e-11))
predicted, run = fc.predict(model, start, path.ts), path.to_xarray()
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, names in zip(axes, (("risk", "snc1"), ("snc2", "snc3"), ("distance", "nc3")), strict=True):
    for name, color in zip(names, ("C0", "C1"), strict=True):
        ax.semilogy(run["time"], run[name], color=color, lw=3, alpha=0.4, label=f"{name}, run")
        ax.semilogy(run["time"], predicted[name], color=color, ls="--", lw=1, label="predicted")
    ax.set_xlabel("time")
    ax.legend(frameon=False, fontsize=7)
worst = {
    name: float(np.abs(predicted[name] / run[name] - 1).max()) for name in ("snc2", "snc3", "distance", "risk", "snc1")
}
print("largest relative error over all times:", {name: f"{error:.1e}" for name, error in worst.items()})

# %% [markdown]
# ## The powers of eps
# The errors at the plateau are powers of eps. The points are medians of 16 seeds from 1e-1 to 1e-5. The dashed lines
# have the powers that `theory.limits.powers` predicts. `theory.limits.rms` predicts the root mean square over starts.

# %%
scales = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
names = ["snc1", "snc3", "distance", "risk"]
grid = fc.sweep(model, fc.Flow(rtol=1e-10), eps=scales, seeds=16, ts=2, metrics=names, progress=False)
end = grid[names].isel(time=-1)
powers = fc.theory.limits.powers(model)
fitted = {}
plt.figure(figsize=(4.5, 3.2))
for name in names:
    median = end[name].median("seed")
    small = median.sel(eps=[1e-2, 1e-3])
    fitted[name] = float(np.log10(small[0] / small[1]))
    plt.loglog(scales, median, "o", label=f"{name}: fitted {fitted[name]:.3f}, predicted {powers[name]}")
    plt.loglog(scales, float(median[1]) * (np.array(scales) / 1e-2) ** powers[name], "k--", lw=0.6)
plt.xlabel("eps")
plt.legend(frameon=False, fontsize=7)
plt.tight_layout()

# %%
rms = fc.theory.limits.rms(model, 1e-4)
measured = float(np.sqrt((end["snc3"].sel(eps=1e-4) ** 2).mean()))
print(f"rms of SNC3 at eps = 1e-4 over 16 seeds: {measured:.3e}, predicted over all starts: {float(rms['snc3']):.3e}")

# %% [markdown]
# ## The ultra-slow second phase
# With more features than the classes need, the remaining within-class part keeps shrinking, over times of order
# 1/eps^2. It does so on an exactly invariant set, where the flow has a closed form. This run starts from a collapsed
# point with a small u and L added:

# %%
key_point, key_u, key_L = jax.random.split(jax.random.key(3), 3)
collapsed = fc.initial.collapsed(model, key=key_point)
span = np.linalg.svd(np.asarray(collapsed.W))[2]
free = jnp.asarray(span[model.num_classes - 1 :])  # features that the frame does not use
u = 0.1 * free.T @ jax.random.normal(key_u, (len(free),))
within = 0.1 * free.T @ jax.random.normal(key_L, (len(free), model.num_samples))
within = within - jnp.repeat(within.reshape(15, 3, 3).mean(-1), 3, axis=1)  # no part of the class means
slow = fc.State(H=collapsed.H + within, W=collapsed.W + jnp.outer(jnp.ones(3), u) / 3**0.5, b=collapsed.b)
ts = np.linspace(0, 60, 61)
exact = fc.theory.exact.second_phase(model, slow, ts)
slow_run = fc.simulate(model, slow, fc.Flow(rtol=1e-10), ts, metrics=["risk"])
exact_risk = fc.risk(model, exact)
plt.figure(figsize=(4.5, 2.8))
plt.semilogy(ts, slow_run.metrics["risk"], lw=3, alpha=0.4, label="run")
plt.semilogy(ts, exact_risk, "k--", lw=1, label="closed form")
plt.xlabel("time")
plt.ylabel("risk")
plt.legend(frameon=False)
plt.tight_layout()
slow_error = float(np.max(np.abs(slow_run.metrics["risk"] - exact_risk)) / exact_risk[0])

# %% [markdown]
# ## Spectra
# The eigenvalues of the Hessian at every rank-r critical point on S, from a closed form with exact multiplicities and
# from a numerical computation.

# %%
spectral_errors = []
for rank in range(model.num_classes):
    closed = fc.theory.landscape.spectrum(model, rank)
    point = fc.theory.landscape.critical_point(model, rank, key=jax.random.key(rank))
    computed = np.sort(np.asarray(fc.hessian_spectrum(model, point).eigenvalues))
    spectral_errors.append(float(np.max(np.abs(np.sort(np.asarray(closed.eigenvalues)) - computed))))
    pairs = zip(np.asarray(closed.values), closed.multiplicities, strict=True)
    print(f"rank {rank}:", ", ".join(f"{value:.3f} x {count}" for value, count in pairs))
print("largest difference to the computed eigenvalues:", max(spectral_errors))

# %%
assert max(worst[name] for name in ("snc2", "snc3", "distance")) < 20 * 1e-2**2
assert all(abs(fitted[name] - powers[name]) < 0.02 for name in names)
assert abs(measured / float(rms["snc3"]) - 1) < 0.6  # the scatter of 16 seeds
assert slow_error < 1e-8
assert max(spectral_errors) < 1e-11
