"""Metrics, predictions and reports of an estimator on data. Inference never imports this package."""
