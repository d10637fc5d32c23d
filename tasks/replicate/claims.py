"""The claims of the seven papers, each with the figure that the paper has, what is measured here in its place, and the
rule that the verdict follows from. Data alone: nothing here is computed, and no verdict is written down.

What is said of the papers is from their abstracts, where these have it; what is known from notes on them (our own
specifications of the methods) is marked so, since the tables themselves were not at hand.
"""

from __future__ import annotations

from longloom.tasks.replicate.claims_cache import LONGCACHE, RAZOR
from longloom.tasks.replicate.claims_data import NGRAMS, PREFERENCES, TAGCOS
from longloom.tasks.replicate.claims_training import CHATQA2, MINISEQUENCE

#: Short name -> title and arXiv number, in the order of the pipeline.
PAPERS = {
    "ngrams": ("Generalization v.s. Memorization", "2407.14985"),
    "tagcos": ("TAGCOS", "2407.15235"),
    "minisequence": ("Mini-Sequence Transformer", "2407.15892"),
    "chatqa2": ("ChatQA 2", "2407.14482"),
    "razor": ("RazorAttention", "2407.15891"),
    "longcache": ("LongCache (ReAttention)", "2407.15176"),
    "preferences": ("Context-Aware Preference Modeling", "2407.14916"),
}

#: In the order of PAPERS.
CLAIMS = (*NGRAMS, *TAGCOS, *MINISEQUENCE, *CHATQA2, *RAZOR, *LONGCACHE, *PREFERENCES)
