"""The platform that a traced operation is expected to run on."""

import jax


def default_backend() -> str:
    """Returns the platform of `jax.default_device` where one is set, else JAX's default backend.

    The answer is a name as `jax.default_backend` gives it: "cpu", "gpu", "tpu" or another. What an
    implementation keeps between its passes depends on the platform, so the choice must be made
    while tracing, when nobody knows yet where the arrays are. For arrays that are elsewhere name
    an implementation.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    if isinstance(device, str):  # the name of a platform, of which "cuda" is one for "gpu"
        device = jax.devices(device)[0]
    return device.platform
