"""LoRA SFT with emoreg's callbacks, in the conventions of TRL's own scripts.

accelerate launch --config_file accelerate_configs/single_cpu.yaml recipes/sft.py \
    --config recipes/tiny/sft/emoreg.yaml
"""

from __future__ import annotations

from datasets import load_dataset
from trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from emoreg import DriftCallback, EmoRegConfig, EmotionRegularizer, EmotionVectors
from emoreg.errors import ConfigError


def main() -> None:
    """Parse the YAML and the flags, train, save the adapter."""
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, EmoRegConfig))
    script, args, model, emoreg = parser.parse_args_and_config()
    if emoreg.emoreg_vectors is None:
        raise ConfigError(
            "emoreg_vectors is missing: name a vector set for this model, by folder or hub name."
        )
    vectors = EmotionVectors.from_pretrained(emoreg.emoreg_vectors)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "quantization_config": get_quantization_config(model),
        **(args.model_init_kwargs or {}),
    }
    data = load_dataset(script.dataset_name, name=script.dataset_config)
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data[script.dataset_test_split] if args.eval_strategy != "no" else None,
        peft_config=get_peft_config(model),
    )
    trainer.add_callback(EmotionRegularizer(trainer, vectors, emoreg))
    trainer.add_callback(DriftCallback.of(trainer, vectors, emoreg))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.save_state()


if __name__ == "__main__":
    main()
