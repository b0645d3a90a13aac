"""How the templates are composed: groups of nodes, from left to right.

By the number of a template: its stages from left to right. A stage is a list of groups, one below
the other; a group is a title with its columns, and a column is a list of node ids. Every wire runs
from a column to one further right.
"""

from __future__ import annotations

Group = tuple[str, list[list[int]]]
Stages = list[list[Group]]

LAYOUTS: dict[str, Stages] = {
    "01": [
        [("Models", [[1, 2]])],
        [("Classifier guidance", [[3]]), ("Label and size", [[4, 5]])],
        [("Sampling", [[6]])],
        [("Result", [[7], [51], [50, 9], [8, 10]])],
    ],
    "02": [
        [("Models", [[1, 2]]), ("A run for each scale", [[12]])],
        [("Classifier guidance", [[3]]), ("Label and size", [[4, 5]])],
        [("Sampling", [[6]])],
        [("Comparison", [[7], [13], [8]])],
    ],
    "03": [
        [("Model", [[1]])],
        [("CFG by a schedule", [[13], [14], [15]]), ("Labels and size", [[2], [3], [4]])],
        [("Sampling", [[9]])],
        [("Result", [[10], [51], [50], [11]])],
    ],
    "04": [
        [("Model", [[1]])],
        [("Labels and size", [[2, 3, 4]])],
        [("Guidance and steps", [[5, 8, 7, 6]])],
        [("Sampling", [[9]])],
        [("Result", [[10], [51], [50], [11]])],
    ],
    "05": [
        [("Models", [[1, 2]])],
        [("Classifier guidance", [[3]]), ("Labels and size", [[4, 5, 6]])],
        [("CFG, in the sampler", [[7]])],
        [("Result", [[8], [51], [50], [9]])],
    ],
    "06": [
        [("Models", [[1, 2]])],
        [("Classifier guidance", [[3], [6]]), ("Label and size", [[4], [5]])],
        [("Sampling, one pass a step", [[7]])],
        [("Result", [[8], [51], [50, 10], [9, 11]])],
    ],
    "07": [
        [("Model and classifier", [[1, 2]])],
        [
            ("Guidance, for the first 0.7 of the run", [[3], [6], [7]]),
            ("Label, and a sampler that takes steps twice", [[4, 5], [10], [11]]),
        ],
        [("Sampling", [[8, 12, 9], [13]])],
        [("Result", [[14], [51], [50, 15], [16, 17]])],
        [("What the classifier saw", [[18]])],
    ],
    "08": [
        [("Models", [[1, 2]])],
        [("Classifier guidance", [[3]]), ("Label and size", [[4, 5]])],
        [("Sampling as in the paper", [[7, 8, 9, 6], [10]])],
        [("Result", [[11], [51], [50], [12]])],
    ],
    "09": [
        [("Your checkpoint", [[1, 2]])],
        [("CFG by a schedule", [[6], [7], [8]]), ("Prompt", [[3], [5], [4]])],
        [("Sampling", [[9]])],
        [("Result", [[10], [11, 12]])],
    ],
    "10": [
        [("Your checkpoint", [[1, 2, 6]])],
        [("Words, and where they act", [[3, 7]])],
        [("Classifier guidance", [[8], [9]]), ("Prompt", [[4], [5]])],
        [("Sampling", [[10]])],
        [("Result", [[11], [12, 13]])],
        [("What the classifier saw", [[14]])],
    ],
    "11": [
        [("Text encoder, VAE and size", [[5, 6, 7]])],
        [("Prompt", [[8, 9]])],
        [
            ("High-noise model: CFG falls from 4 to 3", [[1], [2, 10], [12], [14]]),
            ("Low-noise model: CFG 3, then 1", [[3], [4, 11], [13], [15]]),
        ],
        [("Sampling: ten steps with each model", [[16], [17]])],
        [("Video", [[18], [19], [20]])],
    ],
    "12": [
        [("The model, and a worse one", [[1, 2]])],
        [("The guider's scale by a schedule", [[5], [6], [7]]), ("Prompt and size", [[4], [3]])],
        [("Sampling", [[8, 11, 10, 9], [12]])],
        [("Result", [[13], [14]])],
    ],
    "13": [
        [("OpenAI's models", [[1, 2]])],
        [("Classifier guidance", [[3]]), ("Label and size", [[4, 5]])],
        [("Sampling", [[7, 8, 9, 6], [10]])],
        [("Result", [[11], [12]])],
    ],
    "15": [
        [("OpenAI's models", [[1, 2]])],
        [("Classifier guidance", [[3]]), ("Label and size", [[4, 5]])],
        [("Sampling at 64x64", [[7, 8, 9, 6], [10]])],
        [("Small images", [[11], [12]]), ("Upsampler, and what it gets", [[13], [14, 16], [15]])],
        [("Sampling at 256x256", [[18, 19, 20, 17], [21]])],
        [("Result", [[22], [23]])],
    ],
    "16": [
        [("Pictures", [[1]]), ("Model", [[5]])],
        [("Training", [[2], [3, 4]]), ("Label and size", [[6], [7]])],
        [("Guidance by the new classifier", [[8], [9]])],
        [("Result", [[10], [51], [50, 12], [11, 13]])],
    ],
}
LAYOUTS["14"] = LAYOUTS["13"]
# wide notes: those with a table of files
WIDE_NOTES = {"09", "10", "11", "12", "13", "14", "15"}
