"""The selective scan (Gu and Dao, arXiv 2312.00752, section 3) as an operation of its own."""

from medmamba_jax.ops.selective_scan.api import IMPLEMENTATIONS, choose, selective_scan

__all__ = ["IMPLEMENTATIONS", "choose", "selective_scan"]
