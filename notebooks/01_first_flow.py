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
# # A first flow
#
# Deep classifiers end their training in a rigid geometry. The unconstrained-features model of Mixon, Parshall and Pi
# ([arXiv 2011.11619](https://arxiv.org/abs/2011.11619)) shows why: let the features be free variables, and follow the
# gradient flow from a small start. This tour takes ten minutes: a model, a start, a run and its result, and three
# things to do next.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import flowcollapse as fc

fc.enable_x64()  # collapse is about small differences: float64, chosen by the program, before any state is made

# %% [markdown]
# ## Model and start
# Three classes, three samples per class, fifteen features: the features `H` are 15 x 9, the classifier `W` is 3 x 15.
# The paper starts from random `H` and `W` of norm `eps`, and `b = 0`.

# %%
model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
print("risk at the start:", float(fc.risk(model, start)))

# %% [markdown]
# ## The gradient flow
# One function, `simulate`, does the run. It stops at the plateau, where every mode of the start has grown to its limit.
# Print the result to see what happened.

# %%
path = fc.simulate(model, start, fc.Flow())
path

# %% [markdown]
# The start is close to a saddle at the origin, so the risk hardly falls at first. The modes of the subspace S grow as
# `exp(sqrt(N) t)`. Once they are fully grown, the classifier is an equiangular frame and each feature is at its class
# mean.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(path.ts, path.metrics["risk"])
left.set(xlabel="time", ylabel="risk")
for name in ("snc1", "snc2", "snc3"):
    right.semilogy(path.ts, path.metrics[name], label=name.upper())
right.set(xlabel="time", ylabel="error of strong collapse")
right.legend()
figure.tight_layout()

# %% [markdown]
# The end is not exactly collapsed; the start determines how far it is from collapse. `path.final` has the shapes of the
# model.

# %%
print("W W^T =\n", np.round(path.final.W @ path.final.W.T, 5))
print("sqrt(N) P =\n", np.round(np.sqrt(3) * (np.eye(3) - 1 / 3), 5))

# %% [markdown]
# ## Smaller starts
# `simulate` is a JAX function, so you can map it over starts. The errors SNC1, SNC2 and SNC3 fall as the powers 2, 1
# and 1 of eps.

# %%
scales = jnp.array([1e-2, 1e-3, 1e-4])


def end_of(eps):
    small = fc.initial.sphere(model, eps=eps, key=jax.random.key(0))
    return fc.simulate(model, small, fc.Flow(), metrics=("snc1", "snc2", "snc3")).metrics


ends = jax.jit(jax.vmap(end_of))(scales)
powers = {name: float(np.polyfit(np.log(scales), np.log(values[:, -1]), 1)[0]) for name, values in sorted(ends.items())}
powers

# %% [markdown]
# ## Discrete descent
# Use the same function with another method, any optax optimizer. The time of descent is the sum of its step sizes, so
# both runs share one axis.

# %%
descent = fc.simulate(model, start, fc.Descent(optax.sgd(0.05), num_steps=340))
plt.figure(figsize=(5, 3))
plt.plot(path.ts, path.metrics["risk"], label="flow")
plt.plot(descent.ts, descent.metrics["risk"], ":", label="gradient descent, step 0.05")
plt.xlabel("time")
plt.ylabel("risk")
plt.legend()
plt.tight_layout()

# %% [markdown]
# ## Your own features
# The metrics also work on the features of a trained network: one row per sample, in arrays of any framework.

# %%
rng = np.random.default_rng(0)
labels = rng.integers(0, 4, size=200)
features = np.eye(4, 10)[labels] + 0.05 * rng.normal(size=(200, 10))
fc.metrics.from_features(features, labels)

# %% [markdown]
# ## Laws
# The tour ends with a check of two laws: the powers of eps, and the conservation of `W^T W - H H^T`.

# %%
assert np.allclose([powers["snc1"], powers["snc2"], powers["snc3"]], [2, 1, 1], atol=0.05), powers
assert float(path.metrics["balancedness"][-1]) * 1e-3**2 < 1e-8
