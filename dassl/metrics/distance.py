"""Distances, at the path by which public files import them."""

from dassl.compat import compute_distance_matrix, cosine_distance, euclidean_squared_distance

__all__ = ["compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]
