"""GRPO with emoreg's callbacks, in TRL's own conventions; the body is emoreg.training.

accelerate launch --config_file accelerate_configs/single_cpu.yaml recipes/grpo.py \
    --config recipes/tiny/grpo/emoreg.yaml
"""

from emoreg.training import main

if __name__ == "__main__":
    main("grpo")
