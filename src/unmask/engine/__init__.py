"""The only decoding loop, and what turns user options into a strategy."""
