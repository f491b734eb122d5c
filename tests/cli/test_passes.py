import json

from onnxopt.pass_manager import available_passes
from tests.cli.conftest import run


def test_lists_all_passes_and_pipelines() -> None:
    result = run("passes")
    assert result.exit_code == 0, result.output
    for name in available_passes():
        assert name in result.stdout
    assert "Pipelines" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_json_lists_the_same() -> None:
    document = json.loads(run("passes", "--json").stdout)
    assert {each["name"] for each in document["passes"]} == set(available_passes())
    assert "exact" in document["pipelines"]


def test_one_pass_in_full() -> None:
    result = run("passes", "eliminate-identities")
    assert result.exit_code == 0
    for words in ("eliminate-identities (exact)", "Dropout", "Rules", "forward-identity"):
        assert words in result.stdout
    document = json.loads(run("passes", "eliminate-identities", "--json").stdout)
    assert document["kind"] == "exact"
    assert document["options"] == []


def test_options_have_types_and_defaults() -> None:
    document = json.loads(run("passes", "fold-constants", "--json").stdout)
    assert document["options"]
    assert all(each["type"] and each["default"] for each in document["options"])


def test_unknown_name_suggests_the_nearest() -> None:
    result = run("passes", "eliminate-identites")
    assert result.exit_code == 1
    assert "did you mean 'eliminate-identities'?" in result.stderr
