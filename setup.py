"""The packages of the wheel; pyproject.toml holds everything else.

`configs/` lies at the top of the repository, and the wheel has it as `medmamba_jax/configs/`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["medmamba_jax*"]), "medmamba_jax.configs"],
    package_dir={"medmamba_jax.configs": "configs"},
)
