"""Commands on studies that were launched: each reads files of the store, needs no torch, and works from any machine that sees them."""
