"""Savers: which variables, under which names, in which files; and loading."""
