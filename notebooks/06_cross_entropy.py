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
# # Cross-entropy
#
# The paper's model has the squared error. With cross-entropy in its place the classes collapse too, in one of two ways.
# With weight decay there is a global minimum, and every run finds it. Without, there is none: the logits grow like the
# logarithm of time, without bound, and the geometry settles on the way.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import flowcollapse as fc

fc.enable_x64()
fc.use_cpu_cores()


def model(**options):
    return fc.UFM(**({"num_classes": 3, "samples_per_class": 4, "num_features": 5, "loss": "cross-entropy"} | options))


# %% [markdown]
# ## With decay: a minimum, and a proof of it
# Near the origin the classes grow at the rate `sqrt N` minus the decay. The run then approaches the collapsed minimum
# at the rate of the decay. `path.result` says `minimum` because the residual's largest singular value,
# `residual_norm`, is `sqrt(lam_W lam_H)`: for a convex loss this certifies a global minimum.

# %%
decayed = model(weight_decay=0.1)
start = fc.initial.sphere(decayed, eps=0.1, key=jax.random.key(0))
path = fc.simulate(decayed, start, fc.Flow(), metrics="risk,margin,residual_norm,snc1,nc1,nc3")
print(path)
least = fc.theory.minimiser(decayed)
print(f"risk at the end {float(path.metrics['risk'][-1]):.12f}, at the global minimum {float(least.risk):.12f}")
print(fc.theory.certify(decayed, path.final))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for name in ("snc1", "nc1", "nc3"):
    axes[0].loglog(path.ts[1:], path.metrics[name][1:], label=name)
axes[0].legend(frameon=False)
axes[1].semilogx(path.ts[1:], path.metrics["margin"][1:], label="margin of the run")
axes[1].axhline(float(least.rho), color="k", ls=":", label="ln(1 + C (s/mu - 1))")
axes[1].legend(frameon=False)
for ax in axes:
    ax.set_xlabel("time")

# %% [markdown]
# ## Label smoothing and the focal loss
# Each has a collapsed minimum: its logits are those at which the pull of the loss balances the decay.

# %%
for loss in ("label-smoothing:0.1", "focal:2"):
    other = model(loss=loss, weight_decay=0.1)
    end = fc.simulate(other, start, fc.Flow(), 2, metrics="risk,snc1,margin")
    print(
        f"{loss:20s} risk {float(end.metrics['risk'][-1]):.6f} (minimum {float(fc.theory.minimiser(other).risk):.6f}), "
        f"margin {float(end.metrics['margin'][-1]):.4f}, SNC1 {float(end.metrics['snc1'][-1]):.1e}, {end.result.name}"
    )

# %% [markdown]
# ## Without decay: to t = e^1000
# Rates now fall like 1/t. In the clock `l = ln(1 + t)` they stay of order one, so a run to `t = e^1000` takes a few
# hundred steps. The times of the run are `l`.

# %%
free = model(use_bias=False, num_features=2)
start = fc.initial.sphere(free, eps=0.5, key=jax.random.key(0))
clock = np.concatenate([[0.0], np.geomspace(1.0, 1000.0, 60)])
path = fc.simulate(free, start, fc.Flow(clock="log", rtol=1e-10), clock, metrics="margin,normalised_margin,alignment")
print(path)

# %% [markdown]
# The margin follows an exact solution, the ray of collapsed states; over half the squared norm it tends to the largest
# possible value, `1 / (sqrt N (C - 1))`. The classifier and the class means align only like `1 / ln t`, with a constant
# that is known from the start: the flow never quite forgets it.

# %%
ray = fc.theory.max_margin.logit_on_ray(free, clock[1:], 1.0)
memory = fc.theory.max_margin.memory(free, start)
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
axes[0].semilogx(clock[1:], path.metrics["margin"][1:] - clock[1:], label="run")
axes[0].semilogx(clock[1:], ray - clock[1:], "k:", label="exact ray")
axes[0].set_ylabel("margin - l")
axes[1].loglog(clock[1:], 1 - path.metrics["normalised_margin"][1:] / fc.theory.max_margin.margin(free))
axes[1].set_ylabel("1 - normalised margin / limit")
axes[2].loglog(clock[1:], path.metrics["alignment"][1:], label="run")
axes[2].loglog(clock[1:], memory / ray, "k:", label="memory of the start / logit")
axes[2].set_ylabel("misalignment")
for ax in axes:
    ax.set_xlabel("l = ln(1 + t)")
axes[0].legend(frameon=False)
axes[2].legend(frameon=False)

# %% [markdown]
# ## The laws

# %%
assert abs(float(path.metrics["margin"][-1]) / float(ray[-1]) - 1) < 1e-6
assert abs(float(path.metrics["margin"][-1] * path.metrics["alignment"][-1] / memory) - 1) < 1e-6
assert abs(float(path.metrics["normalised_margin"][-1] / fc.theory.max_margin.margin(free)) - 1) < 1e-3
