"""Fused selective scans for NVIDIA GPUs from Hopper on, in Pallas (Mosaic GPU)."""
