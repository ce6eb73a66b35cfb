"""Packed weights: how few bits are laid out, exactly sized and unpacked."""
