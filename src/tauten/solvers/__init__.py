"""Tensor mathematics that several techniques share; knows no model."""
