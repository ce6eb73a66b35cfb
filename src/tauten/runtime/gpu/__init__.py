"""Products on packed weights by Triton kernels, for weights and activations on a GPU.

They read the tensors of a weight as they are on disk, by rows. Only `launch` imports Triton, and
only `ops` imports `launch`, at the first product on a GPU.
"""
