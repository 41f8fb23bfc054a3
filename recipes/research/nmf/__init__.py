"""Stochastic non-negative matrix factorization: the problem, a bound on its LR, and schedules compared on it."""
