"""Every feature on every model that people have, under core's guiders, with core's patches.

`python3 run.py test tests/comfy/test_zoo.py --write-tables` writes what it finds to docs/models.md.
"""

from __future__ import annotations

import pytest
from zoo import ZOO
from zoo_cells import GUIDERS, WORKS, Cells
from zoo_patches import PATCHES
from zoo_tables import FEATURES, Tables, general

USUAL_GUIDER, USUAL_MODEL = "KSampler", "SDXL"


@pytest.fixture
def outcome(call, call_core, made, place_classifier, load_image, caplog):
    """What comes of a feature on a model, under a guider, with a patch or without."""

    def run(feature, name, guider=USUAL_GUIDER, patch=""):
        cells = Cells(call, call_core, made, place_classifier, load_image, caplog, patch)
        return general(cells.outcome(feature, ZOO[name], guider))

    return run


@pytest.fixture(scope="module")
def tables(request):
    """What docs/models.md says; with --write-tables, what it will say."""
    if not request.config.getoption("--write-tables"):
        yield Tables.read()
        return
    found = Tables()
    yield found
    found.write()


@pytest.fixture
def check(request, tables):
    """Compares an outcome with the table's, or writes it there."""

    def run(table, row, feature, seen):
        if request.config.getoption("--write-tables"):
            tables.outcomes[table, row, feature] = seen
        assert seen == tables.outcomes[table, row, feature]

    return run


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ZOO)
def test_model(outcome, check, name, feature):
    check("Models", name, feature, outcome(feature, name))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("guider", GUIDERS)
def test_guider(outcome, check, guider, feature):
    check("Guiders", guider, feature, outcome(feature, USUAL_MODEL, guider))


@pytest.mark.long
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("patch", PATCHES)
def test_patch(outcome, check, patch, feature):
    name = PATCHES[patch][0]
    check("Patches", f"{patch}, {name}", feature, outcome(feature, name, patch=patch))


@pytest.mark.long
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("guider", GUIDERS)
@pytest.mark.parametrize("name", ZOO)
def test_both_tables_hold_together(outcome, tables, name, guider, feature):
    """Under each guider, each model does what its two rows say."""
    said = {
        tables.outcomes["Models", name, feature],
        tables.outcomes["Guiders", guider, feature],
    }
    assert outcome(feature, name, guider) in ((said - {WORKS}) or {WORKS})
