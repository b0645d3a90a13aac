"""Where the pack hooks into ComfyUI's sampling: the only user of its wrappers and option keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension

_KINDS = comfy.patcher_extension.WrappersMP
# Keys in transformer_options, which core copies for each run and some samplers for each step.
RUN_STATE = "classifier_guidance_run_state"
TRACES = "classifier_guidance_traces"
SIDE_OUTPUTS = "classifier_guidance_side_outputs"
_CLONE = "classifier_guidance_clone"

# Kinds of wrappers for `model.add_wrapper_with_key`, and the arguments that core calls them with.
RUN = _KINDS.OUTER_SAMPLE  # executor, noise, latent, sampler, sigmas, ...: a run of the MODEL
PREPARATION = _KINDS.PREPARE_SAMPLING  # executor, model, noise_shape, ...: reserves its memory
PREDICTION = _KINDS.PREDICT_NOISE  # executor, x, sigma, model_options, seed: the guider's denoised
CONDITIONINGS = _KINDS.CALC_COND_BATCH  # executor, model, conds, x, sigma, options
NETWORK = _KINDS.APPLY_MODEL  # executor, x, t, c_concat, c_crossattn, control, transformer_options
NETWORK_OPTIONS = 5  # index of transformer_options in that wrapper's arguments


def wrap_once(model: Any, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
    """Adds the wrapper, if the MODEL has none with that key; several nodes may need it."""
    if not model.get_wrappers(kind, key):
        model.add_wrapper_with_key(kind, key, wrapper)


def move_outermost(model: Any, kind: str, key: str) -> None:
    """Core calls the wrappers with that key before all others that the MODEL has now."""
    wrappers = model.wrappers[kind]
    model.wrappers[kind] = {key: wrappers.pop(key), **wrappers}


def on_multigpu_clone(model: Any, callback: Callable[[Any, Any], None]) -> None:
    """callback(model, clone) for each copy for another GPU; registered once per MODEL."""
    matched = getattr(comfy.patcher_extension.CallbacksMP, "ON_MATCH_MULTIGPU_CLONES", None)
    if matched is not None and not model.callbacks.get(matched, {}).get(_CLONE):
        model.add_callback_with_key(matched, _CLONE, callback)


def options_of(model_options: dict) -> dict:
    """The transformer_options; created if missing."""
    return model_options.setdefault("transformer_options", {})


def with_side_outputs(model_options: dict, side_outputs: Any) -> dict:
    """Options for evaluations that leave their `side_outputs`."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    comfy.patcher_extension.add_wrapper_with_key(
        CONDITIONINGS, SIDE_OUTPUTS, side_outputs.blend, options, is_model_options=True
    )
    options_of(options)[SIDE_OUTPUTS] = side_outputs
    return options
