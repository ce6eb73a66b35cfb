"""Packed weights: how few bits are laid out, exactly sized and unpacked.

Every kind is imported here, so that `packed.from_spec` knows it whatever a process imports.
"""

from tauten.formats import codebook, integer, shared_rows, sparse, sum, superblock, ternary

__all__ = ["codebook", "integer", "shared_rows", "sparse", "sum", "superblock", "ternary"]
