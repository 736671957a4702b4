"""The names of time zones."""

import pytest

from quartapp.i18n import timezones


@pytest.mark.parametrize("name", ["Europe/Berlin", "Asia/Calcutta", "Asia/Kolkata", "UTC"])
def test_present_and_outdated_names_are_found(name: str) -> None:
    zone = timezones.find(name)
    assert zone is not None
    assert zone.key == name


@pytest.mark.parametrize(
    "name",
    [None, "", "europe/berlin", "Mars/Base", "../../etc/passwd", "/etc/passwd", "tzdata.zi", "a\0"],
)
def test_other_texts_name_no_zone(name: str | None) -> None:
    assert timezones.find(name) is None


def test_each_choice_is_a_zone_of_its_region() -> None:
    choices = timezones.by_region()
    assert len(choices) == len(timezones.REGIONS)
    assert "Europe/Oslo" in choices["Europe"]
    for region, names in choices.items():
        assert names == sorted(names)
        assert all(name.startswith(f"{region}/") and timezones.find(name) for name in names)
