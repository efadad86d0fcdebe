"""What an editor shows: the real yaml-language-server, on the generated schema.

The server is no Python package, so this runs where it is found: on PATH (`npm install -g yaml-language-server`), or at
the path in the environment variable TENSAFE_YLS. Written against version 1.25; 1.15 shows the same mistakes, but
proposes a few things more and offers no fixes.
"""

import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from own_losses import write_project
from tensafe.training.losses.registry import builtin_names
from tensafe.training.losses.schema import loss_schema, schema_files

SERVER = os.environ.get("TENSAFE_YLS") or shutil.which("yaml-language-server")
TIMEOUT = 60  # seconds; the first answer takes a few on a busy machine

pytestmark = pytest.mark.skipif(
    SERVER is None, reason="yaml-language-server is neither on PATH nor in the environment variable TENSAFE_YLS"
)


class Proposal(NamedTuple):
    """An item of a completion."""

    label: str
    text: str
    documentation: str


class Editor:
    """A client of a language server, over its standard input and output."""

    def __init__(self, command: str, schema: Path) -> None:
        self._process = subprocess.Popen([command, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._schema = schema
        self._ids = itertools.count()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._diagnostics: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        snippets = {"completion": {"completionItem": {"snippetSupport": True}}}
        self._request("initialize", {"processId": None, "rootUri": None, "capabilities": {"textDocument": snippets}})
        self._send(method="initialized", params={})
        switches = {"validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False}}
        self._send(method="workspace/didChangeConfiguration", params={"settings": {"yaml": switches}})

    def close(self) -> None:
        """Stop the server as the protocol wants it, or else by force."""
        try:
            self._request("shutdown", None)
            self._send(method="exit")
            self._process.wait(TIMEOUT)
        finally:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()

    def diagnose(self, text: str) -> list[tuple[int, str]]:
        """Return the line, counted from 1, and the message of each mistake."""
        _, diagnostics = self._open(text)
        return [(each["range"]["start"]["line"], each["message"]) for each in diagnostics]

    def complete(self, text: str) -> list[Proposal]:
        """Return what is proposed at the `|` in a text."""
        answer = self._ask("completion", text)
        return [
            Proposal(item["label"], item["insertText"], str(item.get("documentation", ""))) for item in answer["items"]
        ]

    def fixes(self, text: str) -> list[str]:
        """Return what is offered to put in place of the first mistake."""
        uri, diagnostics = self._open(text)
        context = {"diagnostics": diagnostics[:1]}
        params = {"textDocument": {"uri": uri}, "range": diagnostics[0]["range"], "context": context}
        return [action["title"] for action in self._request("textDocument/codeAction", params)]

    def hover(self, text: str) -> str:
        """Return what is shown about the word with the `|` in it."""
        shown: str = self._ask("hover", text)["contents"]["value"]
        return shown

    def _ask(self, what: str, text: str) -> Any:
        before, _, after = text.partition("|")
        uri, _ = self._open(before + after)
        lines = before.split("\n")
        position = {"line": len(lines), "character": len(lines[-1])}  # below the line that names the schema
        return self._request(f"textDocument/{what}", {"textDocument": {"uri": uri}, "position": position})

    def _open(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        uri = f"file:///config_{next(self._ids)}.yaml"
        text = f"# yaml-language-server: $schema={self._schema.as_uri()}\n{text}"
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._send(method="textDocument/didOpen", params={"textDocument": document})
        while True:
            published = self._diagnostics.get(timeout=TIMEOUT)
            if published["uri"] == uri:
                return uri, published["diagnostics"]

    def _request(self, method: str, params: Any) -> Any:
        number = next(self._ids)
        self._send(id=number, method=method, params=params)
        answer = self._answers.get(timeout=TIMEOUT)
        assert answer["id"] == number
        assert "error" not in answer, answer
        return answer["result"]

    def _send(self, **message: Any) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while header := stream.readline():
            length = int(header.partition(b":")[2])
            while stream.readline().strip():  # further headers
                pass
            message = json.loads(stream.read(length))
            if message.get("method") == "textDocument/publishDiagnostics":
                self._diagnostics.put(message["params"])
            elif "method" not in message:
                self._answers.put(message)
            elif "id" in message:  # the server asks about what this client has not
                items = message["params"].get("items")
                self._send(id=message["id"], result=None if items is None else [None] * len(items))


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    schema = tmp_path_factory.mktemp("schemas") / "training_config.json"
    schema.write_text(schema_files()[schema.name], encoding="utf-8")
    assert SERVER is not None
    editor = Editor(SERVER, schema)
    yield editor
    editor.close()


BUILTIN = sorted(builtin_names())
ALONE = [name for name in BUILTIN if "required" not in loss_schema(name)]
NT_XENT = ["metrics", "reduction", "temperature"]
MEANT = "Unknown loss; did you mean token_ce?"
UNKNOWN = "No loss has this name. One of your own is package.module:name."
TOKEN_CE = """\
loss:
  type: token_ce
  kwargs:
    """
TERM = """\
loss:
  type: weighted_sum
  kwargs:
    losses:
      - mse
      - """
DEEP = (
    TERM
    + """\
type: weighted_sum
        kwargs:
          losses:
            - type: token_ce
              kwargs:
                """
)
SCHEDULE = (
    TERM
    + """\
type: mse
        weight:
          """
)
MATRYOSHKA = """\
loss:
  type: matryoshka
  kwargs:
    dims: [64, 32]
    """
CUT_SUM = (
    MATRYOSHKA
    + """\
loss:
      type: weighted_sum
      kwargs:
        losses:
          - type: contrastive
            kwargs:
              """
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("loss: token_ce\noptimizer: {lr: 1e-3}\n", id="bare"),
        pytest.param("loss: my.module:fn\n", id="bare-path"),
        pytest.param("loss:\n  type: my.module.fn\n  kwargs: {x: 1}\n", id="path"),
        pytest.param("loss:\n  type: mse\n  kwargs:\n  inputs:\n", id="null"),
        pytest.param(TOKEN_CE + "label_smoothing: 1e-3\n    reduction: none\n", id="kwargs"),
        pytest.param(TOKEN_CE + "reduction: sequence_sum_norm\n    max_length: 512\n", id="max-length"),
        pytest.param(TERM + "{type: mse, weight: 0.5, name: x, inputs: {targets: y}}\n", id="term"),
        pytest.param(DEEP + "shift: false\n", id="term-in-a-term"),
        pytest.param(CUT_SUM + "temperature: 0.1\n", id="sum-in-a-matryoshka"),
        pytest.param(SCHEDULE + "{schedule: cosine, start: 0, end: 1, steps: 10}\n", id="schedule"),
    ],
)
def test_good_configs_are_left_alone(text: str, editor: Editor) -> None:
    assert editor.diagnose(text) == []


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param(
            TOKEN_CE + "label_smothing: 0.1\n", 4, "Property label_smothing is not allowed.", id="unknown-kwarg"
        ),
        pytest.param(TOKEN_CE + "label_smoothing: x\n", 4, 'Incorrect type. Expected "number".', id="wrong-type"),
        pytest.param(TOKEN_CE + "ignore_index: 1.5\n", 4, 'Incorrect type. Expected "integer".', id="not-an-integer"),
        pytest.param(TOKEN_CE + "label_smoothing: 2\n", 4, "Value is above the maximum of 1.", id="out-of-range"),
        pytest.param(TOKEN_CE + "reduction: avg\n", 4, '"none", "sum", "mean", "sequence_mean"', id="bad-choice"),
        pytest.param(TOKEN_CE + "reduction: no\n", 4, '"none", "sum", "mean"', id="no-is-text"),
        pytest.param(TOKEN_CE + "max_length: 8\n", 4, "Has no effect without reduction", id="unused-max-length"),
        pytest.param(TOKEN_CE + "max_length: 0\n", 4, "below the minimum of 1", id="bad-unused-max-length"),
        pytest.param(TOKEN_CE + "reduction: sequence_sum_norm\n", 3, '"max_length"', id="no-max-length"),
        pytest.param(
            TOKEN_CE + "max_length: null\n    reduction: sequence_sum_norm\n", 4, "Required by", id="null-max-length"
        ),
        pytest.param(TOKEN_CE + "label_smoothing: true\n", 4, 'Incorrect type. Expected "number".', id="bool"),
        pytest.param(TOKEN_CE + "label_smoothing: '0.1'\n", 4, 'Incorrect type. Expected "number".', id="quoted"),
        pytest.param(TOKEN_CE + "class_weights: [1, -1]\n", 4, "below the minimum of 0", id="out-of-range-in-a-list"),
        pytest.param("loss:\n  type: dpo\n  kwargs:\n    beta: 0\n", 4, "exclusive minimum of 0", id="open-range"),
        pytest.param("loss:\n  type: tokn_ce\n  kwargs: {x: 1}\n", 2, MEANT, id="misspelt-loss"),
        pytest.param("loss: token-ce\n", 1, MEANT, id="misspelt-bare-loss"),
        pytest.param(TERM + "type: token_ec\n", 6, MEANT, id="misspelt-loss-of-a-term"),
        pytest.param("loss:\n  type: xent\n", 2, UNKNOWN, id="unknown-loss"),
        pytest.param("loss: xent\n", 1, UNKNOWN, id="unknown-bare-loss"),
        pytest.param("loss: weighted_sum\n", 1, "weighted_sum has required kwargs: losses", id="bare-weighted-sum"),
        pytest.param("loss:\n  type: weighted_sum\n", 1, 'Missing property "kwargs".', id="no-kwargs"),
        pytest.param("loss:\n  type: weighted_sum\n  kwargs:\n", 3, "has required kwargs: losses", id="null-kwargs"),
        pytest.param(MATRYOSHKA, 3, 'Missing property "loss".', id="missing-kwarg"),
        pytest.param("loss: 5\n", 1, "Expected one of string, object.", id="number"),
        pytest.param("loss:\n  type: 5\n", 2, 'Incorrect type. Expected "string".', id="number-as-type"),
        pytest.param("loss:\n  type: a:b:c\n", 2, "Expected package.module:name.", id="bad-path"),
        pytest.param("loss: a b.c\n", 1, "Expected package.module:name.", id="bad-bare-path"),
        pytest.param("loss:\n  type: mse\n  reduction: sum\n", 3, "Property reduction is not", id="misplaced-kwarg"),
        pytest.param("loss:\n  type: mse\n  kwarg: {}\n", 3, "Property kwarg is not allowed.", id="misspelt-key"),
        pytest.param("loss:\n  kwargs:\n    margin: 1\n", 1, 'Missing property "type".', id="no-type"),
        pytest.param("loss:\n  type: mse\n  kwargs: 5\n", 3, "Expected one of object, null.", id="kwargs-number"),
        pytest.param(
            "loss:\n  type: mse\n  inputs:\n    target: y\n", 4, "Property target is not", id="unknown-tensor"
        ),
        pytest.param("optimizer: {}\n", 1, 'Missing property "loss".', id="no-loss"),
        pytest.param(TERM + "msee\n", 6, UNKNOWN, id="term-of-unknown-loss"),
        pytest.param(TERM + "type: mse\n        wieght: 1\n", 7, "Property wieght is not allowed.", id="term-key"),
        pytest.param(TERM + "type: mse\n        weight: x\n", 7, "Expected one of number, object.", id="term-weight"),
        pytest.param(TERM + "{type: mse, kwargs: {reduction: none}}\n", 6, "must be one number", id="term-none"),
        pytest.param(DEEP + "shift: 1\n", 11, 'Incorrect type. Expected "boolean".', id="term-in-a-term"),
        pytest.param(DEEP + "margin: 1\n", 11, "Property margin is not allowed.", id="kwarg-of-another-loss"),
        pytest.param(SCHEDULE + "{start: 0, end: 1}\n", 7, 'Missing property "schedule".', id="no-schedule"),
        pytest.param(
            SCHEDULE + "schedule: linar\n", 8, '"constant" | "linear" | "cosine" | "step"', id="schedule-name"
        ),
        pytest.param(SCHEDULE + "{schedule: constant, start: 0, end: 1}\n", 8, "end is not allowed", id="schedule-key"),
        pytest.param(
            SCHEDULE + "schedule: linear\n          start: 0\n          end: 1\n          steps: 0\n",
            11,
            "Value is below the minimum of 1.",
            id="schedule-range",
        ),
        pytest.param(CUT_SUM + "temprature: 1\n", 11, "Property temprature is not", id="sum-in-a-matryoshka"),
        pytest.param(MATRYOSHKA + "loss: contrasive\n", 5, "did you mean contrastive?", id="loss-of-a-matryoshka"),
        pytest.param("loss: mse\nloss: mse\n", 2, "Map keys must be unique", id="repeated-key"),
    ],
)
def test_each_mistake_is_one_message_on_its_line(text: str, line: int, message: str, editor: Editor) -> None:
    diagnostics = editor.diagnose(text)
    assert [at for at, _ in diagnostics] == [line], diagnostics
    assert message in diagnostics[0][1]


def test_mistakes_are_all_shown(editor: Editor) -> None:
    text = TERM + "type: token_ce\n        kwargs:\n          shfit: true\n          label_smoothing: 2\n"
    assert sorted(line for line, _ in editor.diagnose(text)) == [8, 9]


@pytest.mark.parametrize(
    ("text", "fixes"),
    [
        pytest.param("loss: tokn_ce\n", ["token_ce"], id="misspelt-loss"),
        pytest.param("loss: xent\n", BUILTIN, id="unknown-loss"),
        pytest.param("loss:\n  type: nt_xent\n  kwargs:\n    temprature: 1\n", NT_XENT, id="unknown-kwarg"),
        pytest.param("loss:\n  type: mse\n  kwargs:\n    reduction: avg\n", ["none", "sum", "mean"], id="bad-choice"),
    ],
)
def test_fixes(text: str, fixes: list[str], editor: Editor) -> None:
    assert editor.fixes(text) == fixes


@pytest.mark.parametrize(
    "text",
    ["loss:\n  type: |\n", TERM + "type: |\n", MATRYOSHKA + "loss:\n      type: |\n"],
    ids=["loss", "term", "matryoshka"],
)
def test_completion_of_type(text: str, editor: Editor) -> None:
    proposals = editor.complete(text)
    assert sorted(proposal.label for proposal in proposals) == BUILTIN
    assert all(proposal.text == proposal.label and proposal.documentation for proposal in proposals)


@pytest.mark.parametrize("text", ["loss: |\n", TERM + "|\n"], ids=["loss", "term"])
def test_completion_of_a_loss_offers_names_and_whole_blocks(text: str, editor: Editor) -> None:
    proposals = [proposal for proposal in editor.complete(text) if proposal.label in BUILTIN]
    names = {proposal.text for proposal in proposals if proposal.text == proposal.label}
    assert names == set(ALONE)
    blocks = {proposal.label: proposal.text for proposal in proposals if proposal.text != proposal.label}
    assert sorted(blocks) == BUILTIN
    assert "temperature: 0.07" in blocks["contrastive"]
    assert "losses:\n" in blocks["weighted_sum"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param(
            TOKEN_CE + "|\n",
            {"metrics", "reduction", "max_length", "ignore_index", "shift", "overwrite_logits"}
            | {"label_smoothing", "smoothing_formula", "class_weights", "z_loss", "softcap", "logit_scale"},
            id="token-ce",
        ),
        pytest.param(
            "loss:\n  type: multiple_negatives\n  kwargs:\n    scale: 10.0\n    |\n",
            {"metrics", "reduction", "similarity", "symmetric"},
            id="what-is-left",
        ),
        pytest.param(
            "loss:\n  type: contrastive\n  kwargs:\n    |\n",
            {"metrics", "reduction", "temperature", "margin"},
            id="name-that-another-begins-with",
        ),
        pytest.param(TERM + "type: nt_xent\n        kwargs:\n          |\n", set(NT_XENT), id="term"),
        pytest.param(
            MATRYOSHKA + "loss:\n      type: nt_xent\n      kwargs:\n        |\n", set(NT_XENT), id="matryoshka"
        ),
        pytest.param(CUT_SUM.replace("contrastive", "nt_xent") + "|\n", set(NT_XENT), id="sum-in-a-matryoshka"),
        pytest.param(SCHEDULE + "schedule: |\n", {"constant", "linear", "cosine", "step"}, id="schedule"),
        pytest.param(DEEP.replace("token_ce", "mse") + "|\n", {"metrics", "reduction"}, id="term-in-a-term"),
        pytest.param("loss:\n  type: mse\n  |\n", {"kwargs", "inputs"}, id="beside-type"),
        pytest.param(
            TERM + "type: mse\n        |\n", {"kwargs", "inputs", "weight", "name"}, id="beside-type-of-a-term"
        ),
        pytest.param("loss:\n  type: mse\n  inputs:\n    |\n", {"predictions", "targets", "mask"}, id="tensors"),
        pytest.param(TOKEN_CE + "shift: |\n", {"true", "false"}, id="boolean"),
    ],
)
def test_completion_offers_this_and_nothing_else(text: str, labels: set[str], editor: Editor) -> None:
    proposals = editor.complete(text)
    assert sorted(proposal.label for proposal in proposals) == sorted(labels)


def test_completion_of_kwargs_before_the_type(editor: Editor) -> None:
    proposals = {proposal.label: proposal for proposal in editor.complete("loss:\n  kwargs:\n    |\n")}
    assert {"margin", "label_smoothing", "temperature", "losses"} <= set(proposals)
    assert "contrastive: Additive margin" in proposals["margin"].documentation


def test_completion_inserts_defaults(editor: Editor) -> None:
    texts = {proposal.label: proposal.text for proposal in editor.complete(TOKEN_CE + "|\n")}
    assert texts["ignore_index"] == "ignore_index: ${1:-100}"
    assert texts["label_smoothing"] == "label_smoothing: ${1:0}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("loss: tok|en_ce\n", "Cross-entropy of each token", id="bare-name"),
        pytest.param("loss:\n  type: contr|astive\n", "Symmetric InfoNCE", id="type"),
        pytest.param("loss:\n  type: my.mod|ule:fn\n", "package.module:name", id="path"),
        pytest.param(TOKEN_CE + "label_|smoothing: 0.1\n", "Weight of the uniform distribution", id="kwarg"),
        pytest.param(DEEP + "shi|ft: true\n", "Score position t against label", id="kwarg-of-a-term"),
        pytest.param(
            TERM + "type: mse\n        wei|ght: 1\n", "What the loss of this term is multiplied by", id="weight"
        ),
        pytest.param("loss:\n  type: token_ce\n  inputs:\n    lab|els: y\n", "Key of int", id="tensor"),
        pytest.param(TOKEN_CE + "reduction: sequence_|mean\n", "mean over sequences", id="choice"),
        pytest.param(CUT_SUM + "temp|erature: 0.1\n", "What the cosines are divided by", id="sum-in-a-matryoshka"),
        pytest.param(SCHEDULE + "{schedule: lin|ear, start: 0}\n", "A straight line", id="schedule"),
        pytest.param(SCHEDULE + "{schedule: linear, sta|rt: 0}\n", "The number at first", id="schedule-key"),
    ],
)
def test_hover(text: str, shown: str, editor: Editor) -> None:
    assert shown in editor.hover(text)


# A user's own losses, by `tensafe schema --import my_package.losses --write schemas`


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    assert SERVER is not None
    editor = Editor(SERVER, folder / "schemas" / "training_config.json")
    yield editor
    editor.close()


GAP = "loss:\n  type: own_gap\n  kwargs:\n    margin: 1\n    "
TEMPERED = "loss:\n  type: own_tempered\n  kwargs:\n    "
DOUBLED = "loss:\n  type: own_doubled\n  kwargs:\n    of:\n      type: own_gap\n      kwargs:\n        "


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param("loss: own_gapp\n", 1, "did you mean own_gap?", id="misspelt"),
        pytest.param(GAP + "sid: up\n", 5, "Property sid is not allowed.", id="unknown-kwarg"),
        pytest.param(GAP + "side: up\n", 5, 'Valid values: "above", "below", "both".', id="bad-choice"),
        pytest.param("loss:\n  type: own_gap\n  kwargs: {}\n", 3, 'Missing property "margin".', id="missing-kwarg"),
        pytest.param(TEMPERED + "temperature: 11\n", 4, "above the maximum of 10", id="function-range"),
        pytest.param(TEMPERED + "limit: true\n", 4, 'Expected "integer | null".', id="function-type"),
        pytest.param(TEMPERED + "margin: 1\n", 4, "Property margin is not allowed.", id="kwarg-of-another-loss"),
        pytest.param(DOUBLED + "margin: x\n", 7, 'Incorrect type. Expected "number".', id="nested"),
    ],
)
def test_each_mistake_with_own_losses(text: str, line: int, message: str, own: Editor) -> None:
    diagnostics = own.diagnose(text)
    assert [at for at, _ in diagnostics] == [line], diagnostics
    assert message in diagnostics[0][1]


def test_completion_of_own_losses(own: Editor) -> None:
    types = {proposal.label: proposal.documentation for proposal in own.complete("loss:\n  type: |\n")}
    assert set(types) == {*BUILTIN, "own_gap", "own_tempered", "own_doubled"}
    assert types["own_tempered"] == "Scores at a temperature."
    assert {each.label for each in own.complete(TEMPERED + "|\n")} == {"temperature", "limit", "mode"}
    assert {each.label for each in own.complete(DOUBLED + "|\n")} >= {"metrics", "reduction", "margin", "side"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("loss:\n  type: own_|gap\n", "further away than a margin"),
        (TEMPERED + "temp|erature: 1\n", "What scores are divided by."),
        (DOUBLED + "mar|gin: 1\n", "What is nearer than this is near enough."),
    ],
    ids=["type", "kwarg-of-a-function", "kwarg-of-a-nested-one"],
)
def test_hover_over_own_losses(text: str, shown: str, own: Editor) -> None:
    assert shown in own.hover(text)
