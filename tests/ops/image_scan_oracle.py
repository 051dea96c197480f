"""The scan of an image in four orders and its gradients, pixel by pixel in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
from scan_oracle import scan_oracle

K = 4


def pixel_orders(h, w):
    """The four orders as lists of (row, column)."""
    rows = [(i, j) for i in range(h) for j in range(w)]
    columns = [(i, j) for j in range(w) for i in range(h)]
    return [rows, columns, rows[::-1], columns[::-1]]


def make_image_inputs(b, h, w, d, r, n, *, seed=0, dtype="float32"):
    """Random arguments of `ss2d_scan` by name; those of every pixel in `dtype`."""
    rng = np.random.default_rng(seed)
    arrays = {
        "u": rng.standard_normal((b, h, w, d)),
        "dt": rng.standard_normal((b, h, w, K, r)),
        "B": rng.standard_normal((b, h, w, K, n)),
        "C": rng.standard_normal((b, h, w, K, n)),
        "dt_weight": rng.standard_normal((K, r, d)) / r**0.5,
        "dt_bias": rng.uniform(-4, -1, (K, d)),
        "A": -np.exp(0.3 * rng.standard_normal((K, d, n))),
        "D": rng.standard_normal((K, d)),
    }
    return {
        name: jnp.asarray(x, dtype if name in ("u", "dt", "B", "C") else jnp.float32)
        for name, x in arrays.items()
    }


def image_scan_oracle(inputs, dy):
    """Returns y and the gradients of sum(y * dy) by name."""
    x = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    h, w = x["u"].shape[1:3]
    y = np.zeros_like(x["u"])
    gradients = {name: np.zeros_like(array) for name, array in x.items()}
    for k, pixels in enumerate(pixel_orders(h, w)):
        rows, columns = np.array(pixels).T

        def sequence(array, rows=rows, columns=columns):
            return array[:, rows, columns][:, :, None]

        low_rank = x["dt"][:, rows, columns, k]
        y_k, grad_k = scan_oracle(
            u=sequence(x["u"]),
            delta=(low_rank @ x["dt_weight"][k])[:, :, None],
            A=x["A"][k : k + 1],
            B=sequence(x["B"][..., k, :]),
            C=sequence(x["C"][..., k, :]),
            D=x["D"][k : k + 1],
            delta_bias=x["dt_bias"][k : k + 1],
            delta_softplus=True,
            dy=sequence(dy),
        )
        y[:, rows, columns] += y_k[:, :, 0]
        gradients["u"][:, rows, columns] += grad_k["u"][:, :, 0]
        gradients["B"][:, rows, columns, k] = grad_k["B"][:, :, 0]
        gradients["C"][:, rows, columns, k] = grad_k["C"][:, :, 0]
        d_delta = grad_k["delta"][:, :, 0]
        gradients["dt"][:, rows, columns, k] = d_delta @ x["dt_weight"][k].T
        gradients["dt_weight"][k] = np.einsum("blr,bld->rd", low_rank, d_delta)
        gradients["dt_bias"][k] = grad_k["delta_bias"][0]
        gradients["A"][k] = grad_k["A"][0]
        gradients["D"][k] = grad_k["D"][0]
    return y, gradients
