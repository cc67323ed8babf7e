"""The paper's tables and figures. Inference never imports this package."""
