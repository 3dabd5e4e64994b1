"""How well does an additive score, calibrated on 40 trained networks, rank 6,561 networks of known accuracy?

    python -m benchmarks.surrogate

NAS-Bench-Macro (8 layers, 3 ops each, every network trained three times on CIFAR-10). Forty networks are taken as trained, at
their accuracy in one of the trainings; `dna_deploy.calibrate` fits them, without any score of a supernet, and ranks
all networks, held against the mean of the three. Beside it: ridge on one-hot ops fitted to the accuracies, multiply-adds
alone, and how well two trainings of the same networks agree. Takes half a minute.
"""

import itertools

import numpy as np
from scipy.stats import kendalltau

from benchmarks._nas_bench_macro import SPACE, row_of, truth
from benchmarks._report import Result, arguments, at_least, plain, report
from dna_deploy.calibrate import calibrate, networks_to_train

COUNT = 40


def tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b)[0])


def one_hot_ridge(digits: np.ndarray, rows: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import RidgeCV

    x = np.eye(3)[digits].reshape(len(digits), -1)
    return RidgeCV(np.logspace(-3, 3, 25)).fit(x[rows], accuracy).predict(x)


def main() -> None:
    draws = 5 if arguments(__doc__).parse_args().quick else 40
    known, space = truth(), SPACE.at(32, 10)
    nothing = [np.zeros(block.size) for block in space.blocks]
    digits = np.array(list(itertools.product(range(3), repeat=8)))
    random, balanced, rival, expected, errors = [], [], [], [], []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        picked = rng.choice(len(known.runs), COUNT, replace=False)
        designed = np.array([row_of(arch) for arch in networks_to_train(space, COUNT, seed)])
        for rows, found in ((picked, random), (designed, balanced)):
            whole = np.insert(known.choices[rows], [0, 3], 0, axis=1)  # stem and head have one candidate
            calibration = calibrate(space, nothing, whole, known.runs[rows, seed % 3] / 100)
            summed = sum(calibration.scores[k + 1][known.choices[:, k]] for k in range(3))
            found.append(tau(-summed, known.accuracy))
            if found is balanced:
                expected.append(calibration.loo_tau)
                errors.append(calibration.loo_error)
        rival.append(tau(one_hot_ridge(digits, picked, known.runs[picked, seed % 3]), known.accuracy))
    pairs = [tau(known.runs[:, a], known.runs[:, b]) for a, b in itertools.combinations(range(3), 2)]
    report(
        "surrogate",
        [
            at_least(f"tau, calibrated on {COUNT} balanced networks", balanced, "", 0.82),
            at_least(f"tau, calibrated on {COUNT} random networks", random, "", 0.82),
            plain(f"tau, ridge on one-hot ops, {COUNT} random networks", rival, ""),
            Result("tau, multiply-adds alone", tau(known.flops, known.accuracy), ""),
            Result("tau, parameters alone", tau(known.params, known.accuracy), ""),
            Result("tau between two trainings of the same networks", float(np.mean(pairs)), "", n=3),
            plain("leave-one-out tau the calibration states itself", expected, ""),
            plain("leave-one-out error it states, over the spread", errors, ""),
        ],
    )


if __name__ == "__main__":
    main()
