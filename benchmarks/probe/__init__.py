"""The importance pass beside the loop as it was published: models, meters, both sides, the roofline."""
