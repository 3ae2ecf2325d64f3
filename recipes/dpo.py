"""DPO with emoreg's callbacks, in TRL's own conventions; the body is emoreg.training.

accelerate launch --config_file accelerate_configs/single_cpu.yaml recipes/dpo.py \
    --config recipes/tiny/dpo/emoreg.yaml
"""

from emoreg.training import main

if __name__ == "__main__":
    main("dpo")
