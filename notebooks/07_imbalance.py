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
# # Imbalance
#
# With unequal counts the simplex is no longer the answer. Large classes are learned first, decay can merge small
# classes or remove them, and the angles at the end depend on the counts. All of this is known, and all of it can be
# run.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import flowcollapse as fc

fc.enable_x64()
fc.use_cpu_cores()

# %% [markdown]
# ## The order of learning
# From a small start, the squared error learns one class after the other. `theory.imbalance.learning_times` predicts
# from the start alone when each class has half of its final size.

# %%
counts = (64, 36, 16, 4)
model = fc.UFM(num_classes=4, samples_per_class=counts, num_features=6, use_bias=False)
start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
times = np.asarray(fc.theory.imbalance.learning_times(model, start))
ts = np.linspace(0, 1.5 * times.max(), 400)
path = fc.simulate(model, start, fc.Flow(rtol=1e-10), ts, save_states=True, metrics="risk")
shares = np.sum(np.asarray(path.states.W) ** 2, axis=-1) / np.sqrt(counts)
for k, n in enumerate(counts):
    (line,) = plt.plot(ts, shares[:, k], label=f"{n} samples")
    plt.axvline(times[k], color=line.get_color(), ls="--", lw=0.8)
plt.xlabel("time (dashed: predicted)")
plt.ylabel("squared norm of the class, share of its final value")
plt.legend(frameon=False)
half = [float(np.interp(0.5, shares[:, k], ts)) for k in range(4)]
print("half times:", np.round(half, 4), "predicted:", np.round(times, 4))

# %% [markdown]
# ## Minority collapse
# Cross-entropy with decay tells two small classes apart only if `sqrt(lam_W lam_H)` is below `sqrt(n_B)`, whatever the
# number of samples of the large classes. Above, their classifiers and their features are equal.

# %%
small = 4
decays = [1.2, 1.6, 1.9, 2.1, 2.4]
tied = fc.UFM(num_classes=4, samples_per_class=(16, 16, small, small), num_features=5, loss="cross-entropy")
grid = fc.sweep(
    tied, fc.Flow(), eps=[0.5], seeds=2, weight_decay=decays, ts=1, start="class-means", metrics="risk",
    keep_final=True, progress=False,
)  # fmt: skip
W = grid["W"].isel(eps=0).values
apart = np.linalg.norm(W[..., 2, :] - W[..., 3, :], axis=-1).max(axis=1)
threshold = float(fc.theory.imbalance.class_thresholds(tied)[-1])
for decay, distance in zip(decays, apart, strict=True):
    print(f"decay {decay}: the two small classes are {distance:.1e} apart (threshold {threshold})")

# %% [markdown]
# ## Without decay: the geometry at the end of time
# The largest margin has the logits `P Y` for all counts, but its classifier and its class means have angles that
# depend on them (Thrampoulidis et al. 2022). The flow gets there slowly: at `t = e^50` it is still away, at `e^800` it
# has arrived.

# %%
uneven = fc.UFM(num_classes=4, samples_per_class=(20, 20, 2, 2), num_features=4, loss="cross-entropy", use_bias=False)
start = fc.initial.class_means(uneven, 0.5, key=jax.random.key(0))
clock = np.concatenate([[0.0], np.geomspace(1, 800, 50)])
path = fc.simulate(uneven, start, fc.Flow(clock="log"), clock, save_states=True, metrics="normalised_margin")


def cosine_of_the_small(W):
    a, b = np.asarray(W)[..., 2, :], np.asarray(W)[..., 3, :]
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


limit = fc.theory.max_margin.seli(uneven)
plt.figure()
plt.semilogx(clock[1:], cosine_of_the_small(path.states.W)[1:], label="run")
plt.axhline(cosine_of_the_small(limit.W), color="k", ls=":", label="limit")
plt.axhline(-1 / 3, color="0.7", lw=0.8, label="simplex")
plt.xlabel("ln(1 + t)")
plt.ylabel("cosine of the small classes' classifiers")
plt.legend(frameon=False)

# %% [markdown]
# ## The laws

# %%
assert np.allclose(half, times, rtol=1e-2)
assert np.all((apart > 1e-3) == (np.array(decays) < threshold))
assert abs(float(path.metrics["normalised_margin"][-1] / fc.theory.max_margin.margin(uneven)) - 1) < 1e-2
