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
# # A real network
#
# The model lets the features move freely. Here they are the hidden layers of a small network that learns to read
# digits, once with the squared error and once with cross-entropy. Its collapse is measured layer by layer, and the
# curve of the model that comes closest stands beside that of the network. Some of it agrees and some does not.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from sklearn.datasets import load_digits

import flowcollapse as fc

fc.enable_x64()

# %% [markdown]
# ## The network and its training
# Sixty images of each digit, two hidden layers of 64 neurons, small weights, and descent with momentum over all images
# at once, so that nothing is random after the start.

# %%
C, N, EPOCHS, EVERY = 10, 60, 3000, 200
digits = load_digits()
rows = np.concatenate([np.flatnonzero(digits.target == c)[:N] for c in range(C)])
pixels, labels = jnp.asarray(digits.data[rows] / 16), digits.target[rows]
targets = jax.nn.one_hot(labels, C)
start = jax.tree.map(lambda x: x / 2 if eqx.is_inexact_array(x) else x, eqx.nn.MLP(64, C, 64, 2, key=jax.random.key(0)))


def hidden(network, layer):
    """The features after a hidden layer, one row an image."""
    features = pixels
    for linear in network.layers[: layer + 1]:
        features = jax.nn.relu(jax.vmap(linear)(features))
    return features


def logits(network):
    return jax.vmap(network.layers[-1])(hidden(network, 1))


def squared(logits):
    return jnp.sum((logits - targets) ** 2) / 2 / len(targets)


def cross_entropy(logits):
    return optax.softmax_cross_entropy(logits, targets).mean()


def trained(network, outputs, loss, optimizer):
    """The network at the start and after every two hundred epochs, and the loss in each epoch."""
    numbers, rest = eqx.partition(network, eqx.is_inexact_array)

    def epoch(carry, _):
        numbers, memory = carry
        value, slope = jax.value_and_grad(lambda numbers: loss(outputs(eqx.combine(numbers, rest))))(numbers)
        step, memory = optimizer.update(slope, memory, numbers)
        return (optax.apply_updates(numbers, step), memory), value

    epochs = jax.jit(lambda carry: jax.lax.scan(epoch, carry, None, length=EVERY))
    carry, networks, losses = (numbers, optimizer.init(numbers)), [network], []
    for _ in range(EPOCHS // EVERY):
        carry, values = epochs(carry)
        networks.append(eqx.combine(carry[0], rest))
        losses.append(np.asarray(values))
    return networks, np.concatenate(losses)


runs = {
    "squared error": trained(start, logits, squared, optax.sgd(0.1, momentum=0.9)),
    "cross-entropy": trained(start, logits, cross_entropy, optax.sgd(0.05, momentum=0.9)),
}


# %% [markdown]
# ## Collapse, layer by layer
# An `Accumulator` takes the features in batches. All images fit in memory here, but the numbers would be the same for a
# million of them.


# %%
def measured(network, layer):
    """The metrics of a layer, and for the last one also those of the classifier."""
    features = np.asarray(hidden(network, layer))
    accumulator = fc.metrics.Accumulator(C)
    for batch in np.array_split(np.arange(len(labels)), 4):
        accumulator.update(features[batch], labels[batch])
    last = network.layers[-1]
    return accumulator.result(last.weight, last.bias) if layer == 1 else accumulator.result()


def dataset(networks):
    found = [[measured(network, layer) for layer in range(2)] for network in networks]
    names = found[0][1]
    values = {name: [[one.get(name, np.nan) for one in both] for both in found] for name in names}
    epochs = np.arange(0, EPOCHS + 1, EVERY)
    return xr.Dataset(
        {name: (("epoch", "layer"), rows) for name, rows in values.items()},
        {"epoch": epochs, "layer": ["first", "second"]},
    )


collapse = {name: dataset(networks) for name, (networks, _) in runs.items()}

# %%
for name, found in collapse.items():
    axes = fc.plot.measurement(found.sel(layer="second", drop=True))
    axes[0].figure.suptitle(f"The last hidden layer, {name}")
plt.show()

# %%
figure, ax = plt.subplots(figsize=(6.8, 3.0), layout="constrained")
for name, dashes in (("squared error", "-"), ("cross-entropy", "--")):
    for layer, color in (("first", "#E69F00"), ("second", "#0072B2")):
        one = collapse[name].sel(layer=layer)
        ax.semilogy(one.epoch, one.nc1, ls=dashes, color=color, label=f"{layer} layer, {name}")
ax.set(xlabel="epoch", ylabel="NC1")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Some of this agrees with the theory: with the squared error NC1 falls by two orders of magnitude in the last hidden
# layer, and by less in the one before, and the logits of the class means become a simplex (`nc3_etf`, `unc3`).
#
# Some does not: the class means themselves do not approach a simplex, and the classifier is not proportional to them
# (`nc2_etf_h`, `nc3`). ReLU features are not negative, the classes are not equally hard, and without weight decay
# nothing forgets the start. With cross-entropy, NC1 hardly falls once all images are learned: the margins grow with the
# logarithm of the time.

# %%
last = {name: found.isel(epoch=-1).sel(layer="second") for name, found in collapse.items()}
before = collapse["squared error"].isel(epoch=0).sel(layer="second")
for name, found in last.items():
    print(
        f"{name:14} nc1 {float(found.nc1):.3f}, nc2_etf_h {float(found.nc2_etf_h):.2f}, nc3 {float(found.nc3):.2f}, "
        f"unc3 {float(found.unc3):.3f}"
    )

# %% [markdown]
# ## The model beside the network
# `fc.fit` looks for the model whose closed forms follow a curve, and says whether it explains it. In the model all
# modes grow at one rate. In this network they do not, since some directions of the images are learned faster than
# others. The model can follow the risk to about a percent of its range, but only from a start whose modes differ by a
# factor of a thousand, as those of random starts never do, and with a weight decay that was not there.

# %%
epochs = np.unique(np.linspace(0, EPOCHS - 1, 100).astype(int))
sizes = {"num_classes": C, "samples_per_class": N, "reduction": "mean"}
of_network = {"epoch": epochs, "risk": runs["squared error"][1][epochs]}
network_fit = fc.fit(of_network, **sizes)
print(network_fit)
fc.plot.beside(of_network, network_fit)
plt.show()


# %% [markdown]
# ## The same training with free features
# If the hidden layers are replaced by a table with free features for each image, the training is descent in the model
# itself, and the fit explains it. The model's risk is a sum and the loss is a mean, so the model's time in one epoch is
# the learning rate over the number of images, here 0.01 in units of the time in which a small start grows. Descent with
# steps of this size grows by 1.01 an epoch instead of $e^{0.01}$, which makes its clock slower by half a percent, and
# the fit finds this too.


# %%
class Table(eqx.Module):
    """Free features, and a classifier that reads them."""

    features: jax.Array
    last: eqx.nn.Linear


key = jax.random.key(1)
flat = eqx.nn.Linear(64, C, key=key)
flat = eqx.tree_at(lambda one: (one.weight, one.bias), flat, (1e-2 * flat.weight, 0 * flat.bias))
table = Table(1e-3 * jax.random.normal(key, (C * N, 64)), flat)
growth = 0.01  # of the modes of a small start, in one epoch
rate = growth * C * N / N**0.5
_, losses = trained(table, lambda one: jax.vmap(one.last)(one.features), squared, optax.sgd(rate))
of_table = {"epoch": epochs, "risk": losses[epochs]}
table_fit = fc.fit(of_table, **sizes)
print(table_fit)
fc.plot.beside(of_table, table_fit)
plt.show()

# %%
assert table_fit.explains
assert not network_fit.explains
assert abs(table_fit.scale.value / (np.log1p(growth) / N**0.5) - 1) < 1e-3
assert last["squared error"].nc1 < 0.05 * before.nc1
assert last["squared error"].nc1 < 0.2 * collapse["squared error"].isel(epoch=-1).sel(layer="first").nc1
assert last["squared error"].unc3 < 0.05
assert last["squared error"].nc2_etf_h > 0.3  # no simplex
assert last["cross-entropy"].nc1 > 10 * last["squared error"].nc1
