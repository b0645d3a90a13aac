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

Wrapper = Callable[..., Any]


def around_run(model: Any, key: str, wrapper: Wrapper) -> None:
    """wrapper(executor, ...) runs around each sampling run of the MODEL."""
    model.add_wrapper_with_key(_KINDS.OUTER_SAMPLE, key, wrapper)


def around_preparation(model: Any, key: str, wrapper: Wrapper) -> None:
    """wrapper(executor, model, noise_shape, ...): while memory for a run is reserved."""
    model.add_wrapper_with_key(_KINDS.PREPARE_SAMPLING, key, wrapper)


def around_prediction(model: Any, key: str, wrapper: Wrapper) -> None:
    """wrapper(executor, x, sigma, model_options, seed): a guider's denoised image."""
    model.add_wrapper_with_key(_KINDS.PREDICT_NOISE, key, wrapper)


def around_conditionings(model: Any, key: str, wrapper: Wrapper) -> None:
    """wrapper(executor, model, conds, x, sigma, options): for each conditioning."""
    model.add_wrapper_with_key(_KINDS.CALC_COND_BATCH, key, wrapper)


def around_network(model: Any, key: str, wrapper: Wrapper) -> None:
    """wrapper(executor, x, t, c_concat, c_crossattn, control, transformer_options, ...)."""
    model.add_wrapper_with_key(_KINDS.APPLY_MODEL, key, wrapper)


NETWORK_OPTIONS = 5  # index of transformer_options in that wrapper's arguments


def has_run_wrapper(model: Any, key: str) -> bool:
    """Whether `around_run` was called with that key."""
    return bool(model.get_wrappers(_KINDS.OUTER_SAMPLE, key))


def has_preparation_wrapper(model: Any, key: str) -> bool:
    """Whether `around_preparation` was called with that key."""
    return bool(model.get_wrappers(_KINDS.PREPARE_SAMPLING, key))


def on_multigpu_clone(model: Any, callback: Callable[[Any, Any], None]) -> None:
    """callback(model, clone) for each copy for another GPU; registered once per MODEL."""
    matched = getattr(comfy.patcher_extension.CallbacksMP, "ON_MATCH_MULTIGPU_CLONES", None)
    if matched is not None and not model.callbacks.get(matched, {}).get(_CLONE):
        model.add_callback_with_key(matched, _CLONE, callback)


def options_of(model_options: dict) -> dict:
    """The transformer_options; created if missing."""
    return model_options.setdefault("transformer_options", {})


def with_side_outputs(model_options: dict, side_outputs: Any, wrapper: Wrapper) -> dict:
    """Options for evaluations with `side_outputs`; `wrapper` as for `around_conditionings`."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    comfy.patcher_extension.add_wrapper_with_key(
        _KINDS.CALC_COND_BATCH, SIDE_OUTPUTS, wrapper, options, is_model_options=True
    )
    options_of(options)[SIDE_OUTPUTS] = side_outputs
    return options
