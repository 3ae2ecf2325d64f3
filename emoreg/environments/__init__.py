"""Tasks for GRPO whose answers are checked here: arithmetic, and code with a reward to be gamed."""
