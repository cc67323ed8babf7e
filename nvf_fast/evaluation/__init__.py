"""Measures an estimator on data. Inference never imports this folder."""
