"""Rotary positions that are not the same in every batch."""


def rescales_with_length(config) -> bool:
    """
    Whether a model's rotary factors change with the length of the padded batch (LongRoPE, dynamic NTK).

    They change at one length, which a run may reach late, and by less than 16 bits can show.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [layer.get("rope_type", layer.get("type")) for layer in (rope, *rope.values()) if isinstance(layer, dict)]
    return bool({"longrope", "dynamic"} & set(kinds))
