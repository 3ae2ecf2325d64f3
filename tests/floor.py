"""What the oldest hosts that are allowed cannot do by themselves, by the names of tests."""

from __future__ import annotations

import pytest
import trl
from packaging.version import Version

OLD = Version(trl.__version__) < Version("1.16")
LACKS = {
    "test_the_gradient_is_that_of_unpadded_rows_read_by_hand[prompt tuning-DPO]": "TRL's DPO "
    "does not cut the outputs of virtual tokens off",
    "test_the_gradient_is_that_of_unpadded_rows_read_by_hand[p-tuning-DPO]": "TRL's DPO "
    "does not cut the outputs of virtual tokens off",
    "test_a_screened_rollout_is_left_out_of_training": "TRL counts a rollout without a reward as 0",
    "test_an_adapter_on_the_head_is_refused_by_trl_itself": "TRL takes an adapter on the head",
    "test_what_a_tool_puts_out_is_no_completion[GRPO]": "TRL's tools need jmespath",
    "test_the_gradient_is_that_of_single_precision[fp16 weights": "half precision on a CPU gives "
    "no usable gradient, without emoreg either",
    "test_blocks_of_which_some_run_again_are_read_once": "torch and transformers do not know "
    "every_n_layers",
    "test_activations_that_are_put_away_come_back": "TRL's offloading needs a GPU",
    "test_experts_and_their_router_get_the_terms_beside_the_auxiliary_loss[DPO": "TRL's DPO has no "
    "auxiliary loss",
    "test_experts_and_their_router_get_the_terms_beside_the_auxiliary_loss[GRPO": "TRL's GRPO has "
    "no auxiliary loss",
}


def excuse(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what the hosts lack; with newer hosts nothing is skipped."""
    for item in items if OLD else []:
        for name, why in LACKS.items():
            if item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=f"TRL {trl.__version__}: {why}"))
