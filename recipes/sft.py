"""LoRA SFT with emoreg's callbacks, in the conventions of TRL's own scripts.

accelerate launch --config_file accelerate_configs/single_cpu.yaml recipes/sft.py \
    --config recipes/tiny/sft/emoreg.yaml
"""

from __future__ import annotations

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from emoreg import DriftCallback, EmoRegConfig, EmotionRegularizer, EmotionVectors
from emoreg.errors import ConfigError


def main() -> None:
    """Parse the YAML and the flags, train, save the adapter."""
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, EmoRegConfig))
    script, args, model_config, emoreg = parser.parse_args_and_config()
    if emoreg.emoreg_vectors is None:
        raise ConfigError("emoreg_vectors is missing: name the folder of a vector set for this model.")
    vectors = EmotionVectors.load(emoreg.emoreg_vectors)
    model = AutoModelForCausalLM.from_pretrained(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        dtype=model_config.dtype,
        trust_remote_code=model_config.trust_remote_code,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        model_config.model_name_or_path, revision=model_config.model_revision
    )
    data = load_dataset(script.dataset_name, name=script.dataset_config)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data[script.dataset_test_split] if args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    trainer.add_callback(EmotionRegularizer(trainer, vectors, emoreg))
    trainer.add_callback(
        DriftCallback(trainer, vectors, emoreg.emoreg_drift_prompts, emoreg.emoreg_drift_steps)
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    trainer.save_state()


if __name__ == "__main__":
    main()
