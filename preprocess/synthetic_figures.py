"""Rounded figures of one county in the 2000 census, and how a synthetic person is drawn from them.

All figures are proportions or coefficients, rounded to two or three digits, of the public-use file
fulton_ga_2000.csv (US Census Bureau, 5% sample of Fulton County, 25,766 records, public domain): a
`group_by(...).agg(mean)` for each table; for EMPLOYED_* one scikit-learn `LogisticRegression(C=3)`
on the features named here. No row of the file is in the source.

A person is drawn in the order of dependence: age; sex and race given age; citizenship and English
given race; education given age, shifted by race; marriage, children, disability and service given
what came before; the label given all of these; income given the label. Where the county has a
dependence that is not in this list, the synthetic file has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

AGE_MIN, AGE_LAST_BIN = 18, 93  # the county's file writes all ages from 90 as 93
AGE_BIN_YEARS = 5
AGE_BINS = np.array(  # 18-19, 20-24, ..., 85-89, 90 and over
    [.0414, .1006, .1211, .1152, .1152, .1035, .0966, .0834, .0598, .0417, .0309, .0298, .0261,
     .0184, .0104, .0059]
)  # fmt: skip
AGE_7_EDGES = np.array([25, 35, 45, 55, 65, 75])  # the groups of all tables [7, ...] below
EDUC_5_EDGES = np.array([9, 10, 13, 14])

SEX = np.array([0.51, 0.51, 0.51, 0.53, 0.53, 0.59, 0.66])  # [7]
BLACK = np.array([0.51, 0.39, 0.41, 0.41, 0.46, 0.45, 0.35])  # [7]
LATINO_IF_NOT_BLACK, LATINO_IF_BLACK = 0.086, 0.007
ASIAN_IF_NOT_BLACK = 0.06  # and not latino
USCITIZEN = np.array([0.97, 0.36, 0.53])  # others, latino, asian
ENGLISH = np.array([[0.89, 0.37, 0.73], [0.995, 0.88, 0.94]])  # [uscitizen, as above]
EDUC = np.array(  # [7, 16]
    [[.009, .003, .013, .015, .026, .045, .083, .065, .24, .091, .258, .027, .116, .009, .0, .0],
     [.008, .003, .014, .008, .013, .022, .025, .03, .173, .047, .139, .05, .344, .091, .028, .005],
     [.007, .001, .008, .008, .011, .02, .02, .037, .195, .049, .137, .056, .293, .107, .038, .013],
     [.006, .002, .005, .015, .016, .023, .021, .036, .177, .052, .143, .053, .26, .131, .043, .02],
     [.015, .005, .014, .023, .025, .033, .038, .044, .222, .049, .131, .036, .187, .11, .04, .027],
     [.025, .016, .035, .06, .031, .052, .047, .056, .219, .039, .123, .033, .15, .067, .036, .011],
     [.033, .035, .045, .065, .046, .045, .035, .04, .242, .043, .128, .027, .129, .049, .028, .01]]
)  # fmt: skip
EDUC_IF_BLACK = np.array([1.54, 1.46, 1.09, 0.44, 0.44])  # relative to all, [5]
EDUC_IF_NOT_BLACK = np.array([0.60, 0.66, 0.93, 1.41, 1.41])  # [5]
MARRIED = np.array(  # [7, sex]
    [[.20, .18], [.35, .39], [.55, .54], [.64, .54], [.67, .49], [.69, .40], [.63, .23]]
)  # fmt: skip
MARRIED_IF_BLACK, MARRIED_IF_NOT_BLACK = 0.67, 1.24  # relative to all
DIVORCED = np.array(  # of those not married, [7, sex]
    [[.02, .02], [.07, .10], [.23, .35], [.43, .52], [.51, .49], [.40, .26], [.19, .11]]
)  # fmt: skip
CHILDREN = np.array(  # at home; only women were asked, [7, married]
    [[.17, .26], [.30, .58], [.40, .77], [.18, .39], [.03, .03], [0, 0], [0, 0]]
)  # fmt: skip
DISABILITY = np.array(  # [7, educ5]
    [[.22, .16, .08, .07, .16], [.32, .22, .15, .08, .07], [.35, .27, .17, .09, .08],
     [.45, .32, .20, .10, .09], [.56, .37, .25, .14, .13], [.51, .34, .30, .22, .17],
     [.71, .61, .50, .46, .44]]
)  # fmt: skip
MILITARY = np.array(  # [7, sex]
    [[.04, .02], [.10, .03], [.15, .05], [.30, .03], [.47, .04], [.65, .04], [.68, .06]]
)  # fmt: skip

EMPLOYED_INTERCEPT = 0.22
EMPLOYED_CONTRAST = 1.07  # not measured: makes up for dependences that are left out
EMPLOYED_AGE = np.array(
    [-.22, .66, 1.63, 1.56, 1.63, 1.48, 1.6, 1.41, .94, .19, -.78, -1.12, -1.8, -2.45, -2.33, -2.17]
)  # fmt: skip
EMPLOYED_EDUC = np.array([-0.76, -0.33, 0.02, 0.47, 0.83])  # [5]
EMPLOYED_BITS = {
    "sex": 0.06, "latino": 0.08, "black": -0.23, "asian": -0.59, "married": 0.38, "divorced": 0.25,
    "uscitizen": -0.17, "children": -0.36, "disability": -0.39, "militaryservice": 0.09,
    "englishability": -0.15,
}  # fmt: skip
EMPLOYED_MARRIED_WOMAN = -1.03
EMPLOYED_CHILDREN_BY_AGE = np.array([0.33, -0.47, -0.27, 0, 0, 0, 0])  # [7]
EMPLOYED_DISABLED_BY_AGE = np.array([1.16, 0.28, -0.2, -0.53, -0.27, -0.3, -0.53])  # [7]
EMPLOYED_DISABLED_BY_EDUC = np.array([-0.19, -0.22, -0.06, 0.22, -0.13])  # [5]

# Rows: not employed, employed.
INCOME_ZERO = np.array([0.254, 0.021])
INCOME_NEGATIVE = 0.001
INCOME_LOG_MEAN = np.array([9.23, 10.35])  # of the positive ones, in dollars
INCOME_LOG_DEVIATION = np.array([1.35, 1.1])
INCOME_MAX = 750_000
PUMAS = np.arange(1101, 1108)
PUMA = np.array([0.125, 0.223, 0.145, 0.145, 0.121, 0.126, 0.115])
STATE, FIPS = 13, 13121


def draw_people(generator: np.random.Generator, num_people: int) -> dict[str, NDArray[np.int64]]:
    """Columns of synthetic people, by name."""

    def bit(probability: NDArray[np.floating[Any]] | float) -> NDArray[np.int64]:
        return (generator.random(num_people) < probability).astype(np.int64)

    age_bin = _draw(generator, np.broadcast_to(AGE_BINS, (1, 16)), np.zeros(num_people, np.int64))
    low = np.maximum(15 + AGE_BIN_YEARS * age_bin, AGE_MIN)
    high = 15 + AGE_BIN_YEARS * (age_bin + 1)
    age = np.where(age_bin == 15, AGE_LAST_BIN, generator.integers(low, high))
    age_7 = np.searchsorted(AGE_7_EDGES, age, side="right")
    sex, black = bit(SEX[age_7]), bit(BLACK[age_7])
    latino = bit(np.where(black, LATINO_IF_BLACK, LATINO_IF_NOT_BLACK))
    asian = bit(ASIAN_IF_NOT_BLACK * (1 - black) * (1 - latino))
    origin = np.where(asian, 2, latino)
    uscitizen = bit(USCITIZEN[origin])
    shift = np.stack([EDUC_IF_NOT_BLACK, EDUC_IF_BLACK])[:, _educ_5(np.arange(1, 17))]  # [2, 16]
    educ = 1 + _draw(generator, (EDUC[:, None] * shift).reshape(14, 16), 2 * age_7 + black)
    educ_5 = _educ_5(educ)
    married = bit(MARRIED[age_7, sex] * np.where(black, MARRIED_IF_BLACK, MARRIED_IF_NOT_BLACK))
    people = {
        "sex": sex,
        "age": age,
        "educ": educ,
        "latino": latino,
        "black": black,
        "asian": asian,
        "married": married,
        "divorced": bit(DIVORCED[age_7, sex] * (1 - married)),
        "uscitizen": uscitizen,
        "children": bit(CHILDREN[age_7, married] * sex),
        "disability": bit(DISABILITY[age_7, educ_5]),
        "militaryservice": bit(MILITARY[age_7, sex]),
        "englishability": bit(ENGLISH[uscitizen, origin]),
    }
    logit = EMPLOYED_INTERCEPT + EMPLOYED_AGE[age_bin] + EMPLOYED_EDUC[educ_5]
    logit += sum(weight * people[name] for name, weight in EMPLOYED_BITS.items())
    logit += EMPLOYED_MARRIED_WOMAN * married * sex
    logit += EMPLOYED_CHILDREN_BY_AGE[age_7] * people["children"]
    logit += people["disability"] * (
        EMPLOYED_DISABLED_BY_AGE[age_7] + EMPLOYED_DISABLED_BY_EDUC[educ_5]
    )
    people["employed"] = bit(1 / (1 + np.exp(-EMPLOYED_CONTRAST * logit)))
    people["income"] = _draw_income(generator, people["employed"])
    people["puma"] = generator.choice(PUMAS, num_people, p=PUMA)
    people["state"] = np.full(num_people, STATE)
    people["fips"] = np.full(num_people, FIPS)
    return people


def _educ_5(educ: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(EDUC_5_EDGES, educ, side="right")


def _draw(
    generator: np.random.Generator, weights: Table, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """One category for each entry of `rows`, with the weights [row, category] of its row."""
    ends = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    # Row r owns the interval r..r+1 of one sorted list, so that a single search serves all rows.
    places = (ends + np.arange(len(weights))[:, None])[:, :-1]
    numbers = np.searchsorted(places.ravel(), rows + generator.random(len(rows)), side="right")
    categories: NDArray[np.int64] = numbers - rows * places.shape[1]
    return categories


def _draw_income(generator: np.random.Generator, employed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Dollars, rounded as people do; a few losses, and zeros mostly without employment."""
    logs = INCOME_LOG_MEAN[employed] + INCOME_LOG_DEVIATION[employed] * generator.standard_normal(
        len(employed)
    )
    dollars = np.minimum(np.exp(logs), INCOME_MAX)
    step = np.where(dollars < 20_000, 100, 1000)
    income = (np.rint(dollars / step) * step).astype(np.int64)
    kind = generator.random(len(employed))
    income = np.where(kind < INCOME_NEGATIVE, -(income // 10), income)
    has_none = (kind >= INCOME_NEGATIVE) & (kind < INCOME_NEGATIVE + INCOME_ZERO[employed])
    return np.where(has_none, 0, income)
