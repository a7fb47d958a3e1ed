"""The web page: watch a model write, live. One engine for everybody, one stream of recording lines per request."""
