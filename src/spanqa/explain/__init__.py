"""Why a reader answered as it did: where its heads look, which words carried the decision, and how far that can be trusted.

words.py         question and passage -> words; windows with some of them hidden
decision.py      question and passage -> what was decided, and the number to take apart
attention.py     layers, heads and queries -> attention weights, kept with their tokens
occlusion.py     hide words, read again
gradients.py     gradients, integrated gradients, gradient-weighted attention (needs torch)
rollout.py       attention of all layers -> one weight for each token
trust.py         scores -> how faithful they are, and the words that change the answer
explanation.py   what comes out
attribute.py     all of these, in one call
sentences.py     an explanation in words
maps.py          attention of one window, layer by layer -> what a page shows of each head
page.py          one HTML file (page.html, page.css, page.js); notebook.py the small form of it
figures.py       PNG, SVG and PDF (needs matplotlib)
"""
