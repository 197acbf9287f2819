"""`TRLearner`: the relation term around any learner, and for loops of the user's own."""
