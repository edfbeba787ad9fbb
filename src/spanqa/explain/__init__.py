"""Why a reader answered as it did: where its heads look, which words carried the decision, and how far that can be trusted.

    explanation = attribute(reader, question, passage)      # words with scores, and a verdict
    weights = attentions(reader, question, passage)         # where the tokens of the answer look

words.py         question and passage -> words; windows with some of them hidden
decision.py      question and passage -> what was decided, and the number to take apart
attention.py     layers, heads and queries of a window -> attention weights, kept with their tokens
storage.py       attention weights -> a file, and back
occlusion.py     hide words, read again
gradients.py     gradients, integrated gradients, gradient-weighted attention (needs torch)
rollout.py       attention of all layers -> one weight for each token
trust.py         scores -> how faithful they are, and the words that change the answer
explanation.py   what comes out
attribute.py     all of these, in one call
sentences.py     an explanation in words
maps.py          attention maps as the page needs them
page.py          one HTML file, with page.html, page.css and page.js
notebook.py      a small one for notebooks
figures.py       pictures for papers (needs matplotlib)
diagnosis.py     wrong answers -> what misled the reader
"""

from spanqa.explain.attention import Attention, attention_bytes, attention_of, attentions, stream_layers
from spanqa.explain.attribute import METHODS, attribute, explain_decision
from spanqa.explain.decision import Decision, decide
from spanqa.explain.explanation import Explanation

__all__ = [
    "METHODS",
    "Attention",
    "Decision",
    "Explanation",
    "attention_bytes",
    "attention_of",
    "attentions",
    "attribute",
    "decide",
    "explain_decision",
    "stream_layers",
]
