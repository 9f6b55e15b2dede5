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
# # A million samples per class, on a laptop
#
# With the squared error, the features matter only through their class means and a small within-class part:
# `H = (B / sqrt N) (x) 1^T + L Q^T`, where `Q` never moves. `[B, L]` obeys the same flow, and its size does not depend
# on the number N of samples per class. The only stiff variable, the mean residual, is linear and is treated exactly. So
# a run costs the same for every N, without any approximation.

# %%
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import flowcollapse as fc

fc.enable_x64()
C, p, eps = 10, 64, 1e-3

# %% [markdown]
# ## The same run from a hundred to a million samples
# `initial.sphere(reduced=True)` draws `[B, L]` directly, with the distribution it has in a full draw.

# %%
rows = []
for N in (10**2, 10**3, 10**4, 10**5, 10**6):
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    start = fc.initial.sphere(model, eps=eps, key=jax.random.key(1), reduced=True)
    method = fc.Flow(rtol=1e-8)
    jax.block_until_ready(fc.simulate(model, start, method, metrics=()).end)  # compile
    began = time.perf_counter()
    path = jax.block_until_ready(fc.simulate(model, start, method, metrics=()))
    seconds = time.perf_counter() - began
    rows.append((N, int(path.stats["evaluations"]), seconds))
    print(
        f"N = {N:>9,}: {rows[-1][1]} evaluations, {1e3 * seconds:.0f} ms, {C * N * p * 8 / 2**20:,.1f} MiB would H take"
    )

# %%
path = fc.simulate(model, start, fc.Flow(rtol=1e-10))
path

# %%
plt.figure(figsize=(5, 3))
for name in ("snc2", "snc3", "relative_distance"):
    plt.semilogy(path.ts * np.sqrt(N), path.metrics[name], label=name)
plt.xlabel("time x sqrt(N)")
plt.legend()
plt.tight_layout()

# %% [markdown]
# `path.final.H` would be a matrix of 64 x 10,000,000. It is computed only on request, and here the request explains
# what to do instead.

# %%
try:
    path.final.H
except fc.UsageError as error:
    print(error)

# %% [markdown]
# ## Two laws, at N = 10^6
# The start alone determines the state at the plateau. Let `V0 = P (W0 + B0^T) / 2`, and let `Pi_` project on the
# features orthogonal to the rows of V0. Then the within-class part goes to `L -> Pi_ L0`, and `W W^T -> sqrt(N) P`.
# Both limits are checked without fitting anything.

# %%
P = np.eye(C) - 1 / C
W0, B0, L0 = (np.asarray(x) for x in (start.W, start.B, start.L))
V0 = P @ (W0 + B0.T) / 2
rows_of_V0 = np.linalg.svd(V0)[2][: C - 1]
L_limit = L0 - rows_of_V0.T @ (rows_of_V0 @ L0)
L_end, W_end = np.asarray(path.final.L), np.asarray(path.final.W)

within = np.linalg.norm(L_end - L_limit) / np.linalg.norm(L_limit)
frame = np.linalg.norm(W_end @ W_end.T - np.sqrt(N) * P) / np.sqrt(N)
print(f"within-class part against its limit: {within:.1e};  W W^T against sqrt(N) P: {frame:.1e}")

# %%
evaluations = [row[1] for row in rows]
assert max(evaluations) < 1.3 * min(evaluations), evaluations
assert max(within, frame) < 1e-5
