"""TRL loads a looped model by the path of a folder, as `trl-fork train --model_name_or_path` does."""

import json

from trl.trainer.utils import create_model_from_path

from tests.conftest import build_looped_model, build_tokenizer
from trl_fork.looped import OuroForCausalLM


def test_a_saved_model_is_loaded_by_its_path(tmp_path):
    build_looped_model(build_tokenizer()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in saved
    assert isinstance(create_model_from_path(str(tmp_path)), OuroForCausalLM)
    # As in published files
    names = {"AutoConfig": "configuration_ouro.OuroConfig", "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({**saved, "auto_map": names}))
    for trust_remote_code in (False, True):
        model = create_model_from_path(str(tmp_path), trust_remote_code=trust_remote_code)
        assert isinstance(model, OuroForCausalLM)
