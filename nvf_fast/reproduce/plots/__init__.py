"""The paper's figures, drawn from plain arrays.

`pck` draws figure 3, `qualitative` figures 4, 6 and 7, `poses` figures 5 and 8; `rows` and `dense`
evaluate networks for qualitative rows.
"""
