"""A web page on one's own machine that tries runs on photographs."""
