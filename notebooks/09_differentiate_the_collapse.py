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
# # Differentiate the collapse
#
# A run is a function of its start, and JAX differentiates it. So a start can be found from what it grew into, and one
# can ask which part of a start decides how far its limit stays from collapse.

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.optimize import minimize

import flowcollapse as fc

fc.enable_x64()

# %% [markdown]
# ## A start from its learning curve
# The log of a training run holds the mean logits of each class over time, with noise. Which start did it have? Only the
# sum of the classifier and the class means grows from a small start, and their difference dies out, so the start is
# sought among those in which both are equal: `W = B^T`, with the class means `B` in columns of weight `sqrt(N)`.

# %%
C, N, p = 3, 4, 5
model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
hidden = fc.initial.class_means(model, eps=0.3, key=jax.random.key(7))
ts = jnp.linspace(0, 3, 31)


def start_of(B):
    return fc.State(X=B, W=B.T, b=jnp.zeros(C), columns=hidden.columns)


def logits(B):
    """The mean logits of each class at the times `ts`."""
    states = fc.simulate(model, start_of(B), fc.Flow("tsit5", rtol=1e-6), ts, save_states=True, metrics=()).states
    return states.W @ states.B / N**0.5 + states.b[:, :, None]


noise = 0.003
seen = logits(hidden.B) + noise * jax.random.normal(jax.random.key(1), (len(ts), C, C))


# %% [markdown]
# Least squares through the flow, with L-BFGS of SciPy. The gradient is compiled once; after that it costs a few
# milliseconds. The features of `B` can be rotated without any change of the logits, so the inner products of the class
# means are compared.


# %%
@jax.jit
@jax.value_and_grad
def misfit(B):
    return jnp.mean((logits(B.reshape(p, C)) - seen) ** 2) / noise**2


values = []
first = 0.1 * jax.random.normal(jax.random.key(3), (p * C,))
result = minimize(
    misfit,
    first,
    jac=True,
    method="L-BFGS-B",
    callback=lambda intermediate_result: values.append(intermediate_result.fun),
    options={"maxiter": 60},
)
B = result.x.reshape(p, C)
plt.figure(figsize=(4.5, 2.6))
plt.semilogy(values)
plt.xlabel("step of L-BFGS")
plt.ylabel("misfit (1: the noise)")
plt.tight_layout()
found, true = (np.asarray(x.T @ x) / N for x in (B, hidden.B))
error = float(np.linalg.norm(found - true) / np.linalg.norm(true))
print("inner products of the class means, hidden:", np.round(true, 4), "found:", np.round(found, 4), sep="\n")
print(f"error: {error:.1%}")

# %% [markdown]
# ## Which part of a start matters
# From a small start the limit keeps a memory: SNC2 ends at a number of the order eps. `theory.limits.plateau` gives it
# in closed form, and so its gradient. The gradient through the flow must be the same up to higher orders of eps.

# %%
wide = fc.UFM(num_classes=3, samples_per_class=3, num_features=6)


def by_flow(start):
    return fc.simulate(wide, start, fc.Flow(rtol=1e-9), 1, metrics=("snc2",)).metrics["snc2"][-1]


def by_theory(start):
    return fc.theory.limits.plateau(wide, start).metrics["snc2"]


gradients = {name: jax.jit(jax.grad(f)) for name, f in (("flow", by_flow), ("theory", by_theory))}
scales, differences = (0.1, 0.03, 0.01), []
for eps in scales:
    start = fc.initial.sphere(wide, eps, key=jax.random.key(2))
    flow, theory = (gradients[name](start) for name in ("flow", "theory"))
    apart = jax.tree.map(jnp.subtract, flow, theory)
    differences.append(float(optax.tree.norm(apart) / optax.tree.norm(theory)))
    print(f"eps {eps}: relative difference of the gradients {differences[-1]:.1e}")

# %% [markdown]
# Of which part of the start is this a memory? The gradient says by which share of itself SNC2 changes if a part grows
# by a share of itself.

# %%
start = fc.to_class_means(wide, fc.initial.sphere(wide, 0.01, key=jax.random.key(2)))
gradient = jax.grad(by_theory)(start)
shares = {
    "classifier W": jnp.sum(gradient.W * start.W),
    "class means B": jnp.sum(gradient.B * start.B),
    "within the classes L": jnp.sum(gradient.L * start.L),
}
shares = {name: float(share / by_theory(start)) for name, share in shares.items()}
plt.figure(figsize=(4.5, 2))
plt.barh(list(shares), list(shares.values()), color="0.4")
plt.xlabel("relative change of SNC2 for a relative change of the part")
plt.tight_layout()
print("sum of the shares:", sum(shares.values()))

# %% [markdown]
# The shares add up to 1, because SNC2 is proportional to the start to leading order (Euler's theorem for a homogeneous
# function).

# %%
assert error < 0.1
assert values[-1] < 1.3
assert all(late < early / 3 for early, late in itertools.pairwise(differences))
assert abs(sum(shares.values()) - 1) < 1e-3
