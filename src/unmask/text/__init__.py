"""str to ids and back: tokenizer, chat templates, stop strings, constraints, infill templates. The only room with strings."""
