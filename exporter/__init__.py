"""From a GLU-based language model on Hugging Face to an INT8 engine that is fast and still right."""
