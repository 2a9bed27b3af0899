"""Where examples come from: a source is opened by its spec, checked, split, and batched.

Nothing is imported here, so that `availability` can answer without TensorFlow.
"""
