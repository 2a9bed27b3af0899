"""How models are trained: phases, and what is written down meanwhile."""
