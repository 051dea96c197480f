"""The selective scan and its gradients in float64 NumPy, one step at a time.

Independent of the package: no JAX, no automatic differentiation. The adjoint is written out by
hand from the recurrence, so an error in the package's own backward pass cannot hide in it.
"""

import numpy as np


def softplus(x):
    return np.logaddexp(x, 0.0)


def scan_oracle(u, delta, A, B, C, D, delta_bias, delta_softplus, dy):
    """Returns y and the gradients of sum(y * dy) for all seven inputs, by name, in float64."""
    arrays = (u, delta, A, B, C, D, delta_bias, dy)
    u, delta, A, B, C, D, delta_bias, dy = (np.asarray(x, np.float64) for x in arrays)
    raw = delta + delta_bias
    dt = softplus(raw) if delta_softplus else raw
    b, length, k, d = u.shape
    n = A.shape[-1]

    states = np.zeros((length + 1, b, k, d, n))  # states[t + 1] is h after step t
    y = np.zeros_like(u)
    for t in range(length):
        decay = np.exp(dt[:, t, :, :, None] * A)
        drive = (dt[:, t] * u[:, t])[..., None] * B[:, t, :, None, :]
        states[t + 1] = decay * states[t] + drive
        y[:, t] = (states[t + 1] * C[:, t, :, None, :]).sum(-1) + D * u[:, t]

    grad = {"u": dy * D, "D": (dy * u).sum((0, 1)), "A": np.zeros_like(A)}
    grad["B"], grad["C"] = np.zeros_like(B), np.zeros_like(C)
    ddt = np.zeros_like(dt)
    dh = np.zeros((b, k, d, n))
    for t in reversed(range(length)):
        decay = np.exp(dt[:, t, :, :, None] * A)
        dh = dh + dy[:, t, :, :, None] * C[:, t, :, None, :]
        grad["C"][:, t] = (dy[:, t, :, :, None] * states[t + 1]).sum(2)
        grad["B"][:, t] = (dh * (dt[:, t] * u[:, t])[..., None]).sum(2)
        d_drive = (dh * B[:, t, :, None, :]).sum(-1)
        d_exponent = dh * states[t] * decay
        grad["u"][:, t] += d_drive * dt[:, t]
        ddt[:, t] = d_drive * u[:, t] + (d_exponent * A).sum(-1)
        grad["A"] += (d_exponent * dt[:, t, :, :, None]).sum(0)
        dh = dh * decay
    grad["delta"] = ddt / (1.0 + np.exp(-raw)) if delta_softplus else ddt
    grad["delta_bias"] = grad["delta"].sum((0, 1))
    return y, grad
