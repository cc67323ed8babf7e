"""The paper's figures, drawn from plain arrays; where those come from is the caller's business.

`pck` draws figure 3, `qualitative` figures 4, 6 and 7, `poses` figures 5 and 8; `rows` asks an estimator for
what a qualitative row shows, and `files` reads other methods' predictions and folders of photographs.
"""
