"""Whose tokenizer a model or an adapter has, and that none is made up."""

import re

import pytest
from peft import LoraConfig, get_peft_model

from tests.conftest import build_model, build_tokenizer
from trl_fork.generation.engines import has_tokenizer, load_tokenizer


@pytest.fixture
def folders(tmp_path):
    """A base model, and an adapter without a tokenizer of its own."""
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter = get_peft_model(build_model(tokenizer), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    return tmp_path


def test_an_adapter_has_that_of_its_base_unless_it_has_its_own(folders):
    assert not has_tokenizer(str(folders / "adapter"))
    assert load_tokenizer(str(folders / "adapter")).get_vocab() == build_tokenizer().get_vocab()
    other = build_tokenizer()
    other.add_tokens(["new"])
    other.save_pretrained(folders / "adapter")
    assert "new" in load_tokenizer(str(folders / "adapter")).get_vocab()


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_a_folder_without_one_is_refused(name, folders):
    """transformers would make an empty one up from the model's type."""
    for file in folders.glob("base/*token*"):
        file.unlink()
    message = f"{str(folders / 'base')!r} has no tokenizer (tokenizer_config.json). Copy there that of the model"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tokenizer(str(folders / name))


def test_the_configuration_may_be_missing(folders):
    (folders / "base" / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(folders / "base"))("abc")["input_ids"] == build_tokenizer()("abc")["input_ids"]


def test_a_path_to_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        load_tokenizer(str(tmp_path / "nothing"))
