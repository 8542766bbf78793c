"""Training with OLMo-core: from a recipe, a mixture and a shape to a checkpoint folder in Hugging Face format."""
