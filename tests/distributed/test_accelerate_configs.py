"""The shipped accelerate configurations: accelerate takes them, and they leave a model on disk that can be loaded."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file


DIRECTORY = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(DIRECTORY.glob("*.yaml"))}


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_takes_every_key(name):
    config = load_config_from_file(str(DIRECTORY / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    assert config.num_machines == (2 if name.endswith("two_machines") else 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_saves_a_consolidated_model(name):
    config = CONFIGS[name]
    deepspeed, fsdp = config.get("deepspeed_config", {}), config.get("fsdp_config", {})
    assert ("zero" in name, "fsdp" in name) == (bool(deepspeed), bool(fsdp))
    if deepspeed.get("zero_stage") == 3:
        assert deepspeed["zero3_save_16bit_model"] is True
    if fsdp:
        assert fsdp["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    # They belong to the recipe; a second value here could only contradict it.
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & set(deepspeed)


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_machines_differ_in_nothing_else(name):
    one, two = CONFIGS[name], CONFIGS[f"{name}_two_machines"]
    # Which machine this is stands on the command line.
    assert set(one) - set(two) == {"machine_rank"}
    assert {key for key in two if one[key] != two[key]} == {"num_machines", "num_processes"}


def test_offload_differs_in_nothing_else():
    one, offload = CONFIGS["zero3"]["deepspeed_config"], CONFIGS["zero3_offload"]["deepspeed_config"]
    assert {key for key in offload if one.get(key) != offload[key]} == {
        "offload_optimizer_device",
        "offload_param_device",
    }
    assert {key for key in CONFIGS["zero3"] if CONFIGS["zero3"][key] != CONFIGS["zero3_offload"][key]} == {
        "deepspeed_config"
    }
