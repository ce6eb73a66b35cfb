"""Packed layers and the kernels that compute on them."""
