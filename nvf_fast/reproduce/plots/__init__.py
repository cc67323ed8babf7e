"""The paper's figures, drawn by matplotlib.

`pck` draws figure 3, `hands` figures 4 to 8 from `panels`; `rows` evaluates networks for figures 4, 6 and 7;
`style` writes the files.
"""
