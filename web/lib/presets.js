/** The presets in the gallery of Guidance Schedule. */

/**
 * shape: of the node, and `values` of its other inputs. effect: what it does to the scale, in
 * which {highest} and {lowest} are numbers of the line.
 */
export const PRESETS = [
  {
    name: "limited interval",
    shape: "interval",
    values: { axis: "percent", start: 0.2, end: 0.8, outside: 1 },
    effect: "{highest} in the middle, {lowest} outside",
    models: "any model",
    paper: "after Kynkäänniemi et al. 2024",
    title: "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
  },
  {
    name: "interval for SDXL",
    shape: "interval for SDXL",
    effect: "{highest} from sigma 5.42 to 0.28, else {lowest}",
    models: "SDXL, other EPS and V models; not flow models",
    paper: "Kynkäänniemi et al. 2024",
    title: "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
  },
  {
    name: "linear rise",
    shape: "linear rise",
    effect: "rises from {lowest} to {highest}; the mean is {scale}",
    models: "any model",
    paper: "Wang et al. 2024",
    title: "Analysis of Classifier-Free Guidance Weight Schedulers",
  },
  {
    name: "cosine rise",
    shape: "cosine rise",
    effect: "rises from {lowest} to {highest}; the mean is {scale}",
    models: "any model",
    paper: "Wang et al. 2024",
    title: "Analysis of Classifier-Free Guidance Weight Schedulers",
  },
  {
    name: "power-cosine rise",
    shape: "power-cosine rise",
    effect: "rises from {lowest} to {highest}, most of it late",
    models: "class-conditional models at high scales",
    paper: "Gao et al. 2023",
    title: "Masked Diffusion Transformer is a Strong Image Synthesizer",
  },
];
