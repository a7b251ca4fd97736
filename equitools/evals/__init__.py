"""Evaluations of encoders: the menus of equi-probe, equi-perturb and equi-transfer, a line each."""

from equitools.evals.classification import (
    datasets,
    downstream_linear,
    few_labels,
    finetune,
    knn,
    linear,
    mlp,
)
from equitools.evals.embedding import embed
from equitools.evals.equivariance import layers, score, sensitivity
from equitools.evals.robustness import perturbations
from equitools.evals.run import Evaluation
from equitools.evals.segmentation import davis, label_propagation, saliency, saliency_data
from equitools.manifest import schema

PROBE = {
    "embed": Evaluation(embed.evaluate, "features"),
    "knn": Evaluation(knn.evaluate, "features"),
    "linear": Evaluation(linear.evaluate, "features", layers="cls4"),
    "mlp": Evaluation(mlp.evaluate, "features", layers="cls4"),
}
PERTURB = {
    "grid": Evaluation(perturbations.grid, "changes"),
    "rotation": Evaluation(perturbations.rotation, "changes"),
    "elastic": Evaluation(perturbations.elastic, "changes"),
    "invariance": Evaluation(perturbations.invariance, "changes"),
    "equivariance": Evaluation(score.evaluate, "maps", limits=score.LIMITS),
    "layers": Evaluation(layers.evaluate, "maps", limits=layers.LIMITS, layers="quarters"),
    "sensitivity": Evaluation(sensitivity.evaluate, "vectors", limits=sensitivity.LIMITS),
}
TRANSFER = {
    "linear": Evaluation(downstream_linear.evaluate, "labels", datasets, downstream_linear.check),
    "finetune": Evaluation(finetune.evaluate, "labels", datasets, finetune.check),
    "semi": Evaluation(finetune.evaluate, "labels", few_labels, finetune.check),
    "saliency": Evaluation(saliency.evaluate, "masks", saliency_data, saliency.check),
    "video": Evaluation(label_propagation.evaluate, "videos", davis),
}


def menu(evaluations: dict[str, Evaluation]) -> list[tuple[str, str]]:
    """Each name with the first line of what its evaluation says of itself."""
    return schema.menu({name: one.evaluate for name, one in evaluations.items()})
