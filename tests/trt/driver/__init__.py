"""The true pycuda on a driver that stands in for NVIDIA's: see ``cuda.c``."""
