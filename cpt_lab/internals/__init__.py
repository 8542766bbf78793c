"""What happens inside a model while it reads: `observe.py` watches, `similarity.py` is the mathematics, `tables.py` walks the prompts."""
