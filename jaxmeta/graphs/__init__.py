"""Graphs: nodes, handles on them, and what adds to, shows and edits them."""
