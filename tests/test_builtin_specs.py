"""The specs that come with the program, on small files written by hand and on real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import ROOT
from preprocess import __main__ as command
from preprocess import shards
from preprocess.schema import as_schema, from_schema
from preprocess.spec import num_features
from preprocess.specs import NAMES, builtin
from preprocess_samples import FAST_ENGINES, clean, codes_of, job_of, read

CENSUS = ROOT.parent / "shared/data/census"
PERSONS, HOUSEHOLDS = CENSUS / "oregon_2000_persons.csv", CENSUS / "oregon_2000_households.csv"

ADULT = """\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
50, ?, 83311, HS-grad, 9, Married-civ-spouse, ?, Husband, Black, Male, 0, 0, 13, ?, >50K

38, Private, 215646, HS-grad, 9, Divorced, Sales, Unmarried, White, Female, 99999, 0, 99, Cuba, >50K
16, Private, 1, HS-grad, 9, Divorced, Sales, Unmarried, White, Female, 0, 0, 40, Cuba, >50K
38, private, 1, HS-grad, 9, Divorced, Sales, Unmarried, White, Female, 0, 0, 40, Cuba, >50K
38, Private, 1, HS-grad, 9, Divorced, Sales, Unmarried, White, Female, 100000, 0, 40, Cuba, ?
"""  # noqa: E501
ADULT_TEST = """\
|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0, 0, 40, United-States, <=50K.
44, Private, 160323, Some-college, 10, Married-civ-spouse, Machine-op-inspct, Husband, Black, Male, 7688, 0, 40, Hong, >50K.
"""  # noqa: E501

ACS_HEADER = ("RT,SERIALNO,DIVISION,SPORDER,PUMA,ST,PWGTP,AGEP,CIT,DEAR,DEYE,DREM,DIS,ENG,MAR,MIL,"
              "NATIVITY,SCHL,SEX,RAC1P,HISP,ESR")  # fmt: skip
ACS = {
    "adult at work": '"P",2021GQ01,9,1,101,41,12,45,1,2,2,2,2,,1,4,1,21,2,1,01,1',
    "does not work": '"P",2021HU02,9,1,101,41,12,70,4,1,2,1,1,2,2,2,2,16,1,9,24,6',
    "child": '"P",2021HU02,9,2,101,41,12,15,1,2,2,2,2,,5,,1,12,1,1,01,',
    "baby": '"P",2021HU02,9,3,101,41,12,0,1,2,2,,2,,5,,1,,1,1,01,',
    "armed forces": '"P",2021GQ03,9,1,101,41,12,20,1,2,2,2,2,,5,1,1,18,1,2,01,4',
    "no label": '"P",2021GQ04,9,1,101,41,12,20,1,2,2,2,2,,5,4,1,18,1,2,01,',
    "too old": '"P",2021GQ05,9,1,101,41,12,100,1,2,2,2,2,,5,4,1,18,1,2,01,6',
}


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_spec_is_read_and_can_be_rebuilt(name: str):
    spec = builtin(name)
    assert spec.name == name
    assert from_schema(json.loads(json.dumps(as_schema(spec)))) == spec
    assert spec.num_classes == 2
    assert 40 < num_features(spec) < 400
    features = {source for feature in spec.features for source in feature.sources}
    assert features == {column.name for column in spec.columns} - {spec.label}


def test_the_names_are_those_of_the_files_and_of_the_table_in_the_package():
    from preprocess import specs

    assert NAMES == ("acs-person", "adult", "census-2000", "oregon-2000")
    assert specs.__doc__ is not None
    assert all(f"    {name} " in specs.__doc__ for name in NAMES)


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_both_files_of_adult_are_read_as_they_are(engine: str, tmp_path: Path):
    spec = builtin("adult")
    data, test = tmp_path / "adult.data", tmp_path / "adult.test"
    data.write_text(ADULT)
    test.write_text(ADULT_TEST)
    found = clean(engine, job_of(data, test, folder=tmp_path, spec=spec))
    assert sorted(codes_of(found, spec)) == [
        (25, 0, 7, 2, 7, 1, 4, 1, 0, 0, 40, 0, 0),
        (38, 0, 9, 1, 3, 5, 0, 0, 99999, 0, 99, 12, 1),
        (39, 5, 13, 2, 8, 3, 0, 1, 2174, 0, 40, 0, 0),
        (44, 0, 10, 0, 7, 2, 4, 1, 7688, 0, 40, 39, 1),
        (50, 0, 9, 0, 2, 2, 4, 1, 0, 0, 13, 0, 1),
    ]
    assert found.imputed == {"workclass": 1, "occupation": 1, "native-country": 1}
    assert [(one.source, one.line, *one.refusal) for one in found.refused] == [
        (0, 5, "age", "16", "out-of-domain"),
        (0, 6, "workclass", "private", "out-of-domain"),
        (0, 7, "income", "?", "missing-label"),
        (1, 1, "", "1", "field-count"),
    ]


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_a_person_file_of_the_acs_is_read_by_name_and_children_are_skipped(
    engine: str, tmp_path: Path
):
    spec = builtin("acs-person")
    path = tmp_path / "psam_p41.csv"
    path.write_text("\n".join([ACS_HEADER, *ACS.values(), ""]))
    found = clean(engine, job_of(path, folder=tmp_path, spec=spec))
    names = [column.name for column in spec.columns]
    rows = {row[0]: dict(zip(names, row, strict=True)) for row in codes_of(found, spec)}
    assert sorted(rows) == [20, 45, 70]
    assert rows[45] == {
        **{"agep": 45, "schl": 21, "mar": 1, "sex": 2, "rac1p": 1, "hisp": 1, "cit": 1},
        **{"nativity": 1, "dis": 2, "dear": 2, "deye": 2, "drem": 2, "mil": 4, "eng": 0, "esr": 1},
    }
    assert (rows[70]["hisp"], rows[70]["esr"], rows[20]["esr"]) == (24, 0, 1)
    assert +found.skipped == {"agep": 3}, "two children, and one above the top code"
    assert +found.imputed == {"eng": 2}
    assert [(one.line, *one.refusal) for one in found.refused] == [(7, "esr", "", "missing-label")]


def test_a_file_of_the_acs_without_a_used_column_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "psam_p41.csv"
    path.write_text("\n".join([ACS_HEADER.replace("SCHL", "SCHLX"), *ACS.values()]))
    assert command.main(["--input", str(path), "--dry-run", "--spec", "acs-person"]) == 5
    error = capsys.readouterr().err
    assert error.endswith("header must name the 15 columns of acs-person; missing: schl\n")


def test_persons_are_joined_with_their_households(tmp_path: Path):
    persons, households = tmp_path / "persons.csv", tmp_path / "households.csv"
    persons.write_text(
        "SERIALNO,age,wrklyr,military,inctot\n1,40,1,NA,5\n2,15,0,NA,NA\n3,70,2,1,9\n4,30,1,4,9\n"
        "5,30,0,4,9\n6,30,1,4,9\n"
    )
    households.write_text(
        "serialno,puma5,hweight,unittype,persons,bldgsz,hinc\n1,100,9,0,3,2,100\n3,100,9,1,1,NA,-5\n"
        "2,1,1,0,1,1,1\n5,1,1,0,1,1,1\n6,1,1,0,1,1,1\n6,1,1,0,2,1,1\n"
    )
    spec = builtin("oregon-2000")
    for engine in FAST_ENGINES:
        job = job_of(persons, folder=tmp_path, spec=spec, join=households)
        found = clean(engine, job)
        assert sorted(codes_of(found, spec)) == [(40, 4, 0, 3, 2, 1), (70, 1, 1, 1, 0, 0)]
        assert +found.imputed == {"military": 1, "bldgsz": 1}
        assert +found.skipped == {"age": 1, "wrklyr": 1}
        assert [(one.line, *one.refusal) for one in found.refused] == [
            (5, "serialno", "4", "no-match"),
            (7, "serialno", "6", "ambiguous-match"),
        ]


@pytest.mark.skipif(not PERSONS.exists(), reason="the census files of Oregon are not here")
def test_the_real_persons_of_oregon_are_kept_but_for_those_who_were_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "set"
    arguments = ["--input", PERSONS, "--join", HOUSEHOLDS, "--spec", "oregon-2000", "--output",
                 target]  # fmt: skip
    assert command.main(list(map(str, arguments))) == 0
    manifest = shards.read_manifest(target)
    counts = manifest["counts"]
    assert counts["records"] == 134_866
    assert counts["not_in_universe"] == 31_246
    assert (counts["kept"], counts["refused"]) == (103_620, 0)
    assert [Path(file["path"]).name for file in manifest["made_from"]["files"]] == [
        PERSONS.name,
        HOUSEHOLDS.name,
    ]
    words = capsys.readouterr().out.split("not in the universe of the spec", 1)[1]
    assert words.split()[0] == "31,246"
    worked = read(target, "train")["wrklyr"].mean()
    assert 0.5 < worked < 0.8
