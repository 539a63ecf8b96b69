"""docs/restore.md: each of its commands is one that Azure CLI, azd or this repository has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.infra.bicep import ROOT, of_type

PAGE = (ROOT / "docs" / "restore.md").read_text("utf-8")
BLOCKS = re.findall(r"(?ms)^```bash\n(.*?)^```", PAGE)

# As Azure CLI 2.91.0 parsed them; it is too large to be installed for the tests. A new command or option
# is tried with it first: without a login it says "Please run 'az login'" of what it knows.
KNOWN = {
    "az lock create": "--name --lock-type --resource-group",
    "az storage blob list": "--container-name --include --query --output",
    "az storage blob undelete": "--container-name --name",
    "az storage blob download": "--container-name --name --file --version-id --snapshot",
    "az storage blob upload": "--container-name --name --file --overwrite",
    "az storage container list": "--include-deleted",
    "az storage container restore": "--name --deleted-version",
    "az storage message peek": "--queue-name --num-messages",
    "az storage message clear": "--queue-name",
}
IDENTITY = {"--account-name", "--auth-mode"}
"""Accounts have no keys, so that each command on one signs in."""


def _commands() -> Iterator[list[str]]:
    for block in BLOCKS:
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if line.startswith("az "):
                yield shlex.split(line)


COMMANDS = list(_commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_azure_cli_has_the_command(words: list[str]) -> None:
    """With each of its options; on a storage account it signs in."""
    ((command, options),) = (each for each in KNOWN.items() if " ".join(words).startswith(f"{each[0]} "))
    given = {word for word in words if word.startswith("--")}
    if command.startswith("az storage "):
        assert given >= IDENTITY
        assert words[words.index("--auth-mode") + 1] == "login"
        given -= IDENTITY
    assert given <= set(options.split())


def test_every_known_command_is_on_the_page() -> None:
    """Or the list would be of what nobody reads."""
    for command in KNOWN:
        assert any(" ".join(words).startswith(command) for words in COMMANDS), command


def test_containers_and_queues_are_those_that_are_deployed() -> None:
    """A name that has changed would be restored to nowhere."""
    kinds = {"--container-name": "blobServices/containers", "--queue-name": "queueServices/queues"}
    for option, kind in kinds.items():
        deployed = of_type("complete", f"Microsoft.Storage/storageAccounts/{kind}")
        names = {each["name"].rpartition("/")[2] for each in deployed}
        named = {words[words.index(option) + 1] for words in COMMANDS if option in words}
        assert named
        assert named <= names


def test_the_router_reads_the_document_that_is_restored() -> None:
    """keys.json of the container keys."""
    router = (ROOT / "infra" / "app" / "router.bicep").read_text("utf-8")
    assert "/keys/keys.json'" in router
    restored = [words for words in COMMANDS if "keys" in words and "--name" in words]
    assert restored
    assert {words[words.index("--name") + 1] for words in restored} == {"keys.json"}
