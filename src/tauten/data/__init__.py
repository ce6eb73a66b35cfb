"""Texts and tensors, cut into independent examples and split by purpose."""
