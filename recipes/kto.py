"""KTO with emoreg's callbacks, in TRL's own conventions; the body is emoreg.training.

accelerate launch --config_file accelerate_configs/single_cpu.yaml recipes/kto.py \
    --config recipes/tiny/kto/emoreg.yaml
"""

from emoreg.training import main

if __name__ == "__main__":
    main("kto")
