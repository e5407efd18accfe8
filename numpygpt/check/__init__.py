"""Is it right, is it fast: trace, compare, diagnose, published numbers, speed."""
