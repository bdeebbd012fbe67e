"""For research: compare attentions, measure cost, benchmark. Nothing here is needed to predict."""
