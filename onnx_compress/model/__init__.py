"""What a model is: document, surgery, the canonical form, channels and cost."""
