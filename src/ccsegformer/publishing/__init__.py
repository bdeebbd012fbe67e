"""Model cards made from what a run's folder holds, and their way to the Hugging Face hub."""
