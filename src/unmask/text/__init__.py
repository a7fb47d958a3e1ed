"""str <-> ids: tokenizer, chat templates, stop strings, constraints, infilling. The only room with strings."""
