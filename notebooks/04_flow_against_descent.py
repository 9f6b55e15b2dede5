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
# # The gradient flow against descent
#
# In practice, nobody trains with the flow. `fc.compare` runs a flow and any number of optimizers from the same starts
# and matches them in time: the time of a step is the distance that the optimizer would move under a constant unit
# force. That is eta for gradient descent, eta / (1 - beta) with momentum once it is up to speed, and eta for Adam.

# %%
import matplotlib.pyplot as plt
import numpy as np

import flowcollapse as fc

fc.enable_x64()
model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
optimizers = {
    "descent 0.01": "sgd:learning_rate=0.01",
    "descent 0.1": "sgd:learning_rate=0.1",
    "momentum 0.9": "sgd:learning_rate=0.01,momentum=0.9",
    "Adam": "adam:learning_rate=0.01",
}
runs = fc.compare(model, "sphere", optimizers, eps=[1e-2], seeds=8, metrics=["snc1"])


# %% [markdown]
# Gradient descent follows the flow, more closely with smaller steps. Momentum, with an effective step of
# eta / (1 - beta) = 0.1, overshoots and oscillates about the same limit. Adam scales every entry separately, so it
# escapes from the origin long before the others and along a different path.


# %%
def figure(data, draw, *names):
    _, axes = plt.subplots(1, len(names), figsize=(7.5, 2.7), dpi=60, layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        draw(data, name, ax)
    axes[1].get_legend().remove()


def paths_or_distance(data, name, ax):
    if name == "distance_to_flow":
        return fc.plot.comparison_distance(data, ax)
    return fc.plot.comparison_paths(data, name, ax)


figure(runs, paths_or_distance, "snc1", "distance_to_flow")
apart = runs["max_distance_to_flow"].median(["eps", "seed"])
print(apart.to_pandas().round(4))

# %% [markdown]
# ## The flow that descent follows
# Descent with steps eta is O(eta) away from the gradient flow, and O(eta^2) away from the modified flow, which is the
# gradient flow of R + (eta / 4) ||grad R||^2 (`fc.ModifiedFlow`). The step size is an axis: all six values run as one
# compiled batch. The figure shows the largest distance from descent to the flow and, one order smaller, to the modified
# flow.

# %%
rates = np.array([0.004, 0.006, 0.01, 0.016, 0.025, 0.04])
orders, shadows = {}, {}
for flow in ("flow", "modified-flow"):
    options = {"eps": [0.3], "seeds": 4, "metrics": (), "learning_rate": rates}
    shadows[flow] = fc.compare(model, "sphere", ["sgd"], 21, flow=flow, **options)
    furthest = shadows[flow]["max_distance_to_flow"].sel({"method": "sgd"}).isel(eps=0)
    orders[flow] = np.polyfit(np.log(rates), np.log(furthest.transpose("learning_rate", "seed")), 1)[0]
    print(f"{flow:14s} order {orders[flow].min():.3f} to {orders[flow].max():.3f} over the seeds")

# %%
_, ax = plt.subplots(figsize=(4, 2.7), dpi=60, layout="constrained")
for data in shadows.values():
    fc.plot.comparison_ends(data, ax=ax)
ax.get_legend().remove()

# %% [markdown]
# ## Adam leaves S
# The subspace S, on which the features mirror the classifier, is invariant under the flow and under gradient descent at
# any step size, also with momentum. It is not invariant under Adam, which acts on single entries: started on S, Adam
# leaves S and reaches zero risk far from it, without strong collapse.

# %%
two = {name: optimizers[name] for name in ("descent 0.1", "Adam")}
on_s = fc.compare(model, "on-subspace", two, eps=[1e-2], seeds=8, metrics=["distance", "risk"])
figure(on_s, paths_or_distance, "distance", "risk")
end = on_s[["distance", "risk"]].isel(time=-1).median(["eps", "seed"])
print(end.to_dataframe()[["distance", "risk"]])

# %% [markdown]
# ## Laws
# The orders are 1 and 2 for every seed, fitted over six step sizes (the next term of the expansion changes them by
# about eta). The flow and gradient descent stay on S up to rounding. Adam also ends at zero risk, but at a distance of
# order one from S.

# %%
rounding = np.finfo(float).eps
assert np.abs(orders["flow"] - 1).max() < 0.05
assert np.abs(orders["modified-flow"] - 2).max() < 0.05
assert on_s["distance"].sel({"method": ["flow", "descent 0.1"]}).max() < rounding**0.5
at_end = on_s.isel(time=-1)
assert at_end["risk"].max() < rounding
assert at_end["distance"].sel({"method": "Adam"}).min() > 0.5
