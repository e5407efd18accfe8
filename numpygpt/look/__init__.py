"""Seeing inside: the numbers of a record, and pictures of them."""
