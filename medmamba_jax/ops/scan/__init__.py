"""The selective scan (Gu and Dao, arXiv 2312.00752, section 3) as a separate operation."""

from medmamba_jax.ops.scan.api import selective_scan
from medmamba_jax.ops.scan.implementations import IMPLEMENTATIONS, Case, choose

__all__ = ["IMPLEMENTATIONS", "Case", "choose", "selective_scan"]
