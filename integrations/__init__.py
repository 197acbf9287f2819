"""Plugs TRLearner into other meta-learning libraries, one short module an ecosystem."""
