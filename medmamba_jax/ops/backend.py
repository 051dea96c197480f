"""The platform that a traced operation is expected to run on."""

import jax


def default_backend() -> str:
    """Returns the platform of `jax.default_device` if it is set, else JAX's default backend.

    The result is a name as in `jax.default_backend`: "cpu", "gpu", "tpu" or another. The arrays
    that an implementation keeps between its passes depend on the platform. So the implementation
    must be chosen while the function is traced, when the place of the arrays is not known yet. For
    arrays on another platform, name an implementation.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    if isinstance(device, str):  # the name of a platform, which may be "cuda" for "gpu"
        device = jax.devices(device)[0]
    return device.platform
